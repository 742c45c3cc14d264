"""Cross-validation: the runs, the report, resuming, and what it refuses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import iformer
from iformer.api.train import build_job
from iformer.cli.main import main
from iformer.config.metadata import Metadata
from iformer.config.variants import VARIANTS
from iformer.data.sources import load_data
from iformer.errors import UserError
from iformer.tasks.classification.dataset import find_labelled
from iformer.tasks.folds import CrossValidation, check_folder
from tiny.classification import make_images
from tiny.networks import tiny_variant

SMALL: dict[str, Any] = {
    "model": "iformer_tiny",
    "weights": "none",
    "epochs": 1,
    "size": 64,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "tensorboard": False,
}

RECIPE = ("weights", "epochs", "size", "batch_size", "workers")


@pytest.fixture(scope="module", autouse=True)
def _tiny_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x (2 + 4) images."""
    return make_images(tmp_path_factory.mktemp("photographs"), 2)


@pytest.fixture(scope="module")
def result(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    return iformer.cross_validate(photographs, out=tmp_path_factory.mktemp("runs") / "two", folds=2, **SMALL)


def test_every_image_validates_one_run(result: CrossValidation, photographs: Path) -> None:
    data = load_data(photographs)
    everything = sorted(str(sample) for images in (data.train, data.val) for sample in images.samples)
    validated = [str(fold.evaluation.image_set.samples[i]) for fold in result.folds for i in range(9)]  # type: ignore[attr-defined]
    assert sorted(validated) == everything
    assert [fold.folder.name for fold in result.folds] == ["fold-1", "fold-2"]


def test_mean_and_spread(result: CrossValidation) -> None:
    values = [fold.metrics["top1"] for fold in result.folds]
    spread = result.metrics["top1"]
    assert spread.values == tuple(values)
    assert spread.mean == pytest.approx(statistics.mean(values))
    assert spread.std == pytest.approx(statistics.stdev(values))
    stored = json.loads((result.folder / "metrics.json").read_text())
    assert stored["images"] == 18
    assert stored["metrics"]["top1"]["mean"] == spread.mean
    text = result.report.read_text()
    assert f"top-1 {spread.mean:.2f} % ± {spread.std:.2f} over 2 folds" in text
    assert "[2](fold-2/report.md)" in text
    assert "| blue |" in text


def test_a_network_is_evaluated_on_its_own_fold(result: CrossValidation, photographs: Path) -> None:
    for fold in result.folds:
        again = iformer.evaluate(fold, photographs, device="cpu")
        assert again.metrics["top1"] == fold.metrics["top1"]
        assert again.metrics["images"] == 9


@pytest.mark.sweep
def test_the_verb_resumes(result: CrossValidation, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", str(photographs), "--folds", "2", "--out", str(result.folder)]
    assert main(words) == 1
    assert "holds a cross-validation already; --resume continues it" in capsys.readouterr().err
    assert main([*words, "--resume", "--device", "cpu", "--no-tensorboard", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"]["top1"]["values"] == list(result.metrics["top1"].values)
    assert main([*words, "--resume", "--val-split", "0.3"]) == 1
    assert "--val-split is for a single run" in capsys.readouterr().err


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(UserError, match="files that are not of a cross-validation"):
        check_folder(tmp_path, 5, resume=False, overwrite=True)
    with pytest.raises(UserError, match=r"note\.txt is a file"):
        check_folder(tmp_path / "note.txt", 5, resume=False, overwrite=False)
    (tmp_path / "five/fold-1").mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", ".0123456789abcdef.part", "notes.txt"):
        (tmp_path / "five" / name).touch()
    check_folder(tmp_path / "five", 5, resume=True, overwrite=False)
    with pytest.raises(UserError, match="files that are not of a cross-validation"):
        check_folder(tmp_path / "five", 5, resume=False, overwrite=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(UserError, match="holds a single run"):
        check_folder(tmp_path / "run", 5, resume=True, overwrite=False)
    (tmp_path / "more/fold-7").mkdir(parents=True)
    with pytest.raises(UserError, match="holds fold-7 of more folds than 5"):
        check_folder(tmp_path / "more", 5, resume=True, overwrite=False)


def test_folds_are_for_classifiers(photographs: Path, tmp_path: Path) -> None:
    words = ["train", "--task", "detect", "--data", str(photographs), "--folds", "2", "--out", str(tmp_path / "x")]
    assert main(words) == 1
    assert not (tmp_path / "x").exists()


def test_another_number_of_folds_does_not_resume(result: CrossValidation, photographs: Path) -> None:
    """Two folds as none or as three: one line with the stored number, and nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")}
    with pytest.raises(UserError, match="fold-1 was begun with --folds 2, not with --folds 3; give --folds 2, or"):
        iformer.cross_validate(out=result.folder, folds=3, resume=True)
    with pytest.raises(UserError, match=r"holds a cross-validation, .*; add --folds 2, or give another --out"):
        iformer.train(out=result.folder, resume=True)
    with pytest.raises(UserError, match="holds a single run; leave out --folds to continue it, or give another"):
        iformer.cross_validate(out=result.folds[0].folder, folds=2, resume=True)
    assert {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")} == before
    check_folder(result.folder, 2, resume=True, overwrite=False)


def test_a_run_without_folds_is_not_resumed_as_one(result: CrossValidation, tmp_path: Path) -> None:
    (tmp_path / "fold-1").mkdir()
    config = yaml.safe_load(result.folds[0].paths.config.read_text())
    (tmp_path / "fold-1/config.yaml").write_text(yaml.safe_dump({**config, "fold": None}))
    with pytest.raises(UserError, match="fold-1 was begun without --folds, not with --folds 2; give"):
        check_folder(tmp_path, 2, resume=True, overwrite=False)


def test_folds_of_groups_that_cannot_be_split_otherwise(photographs: Path, tmp_path: Path) -> None:
    """Each class is in two of three groups, so every group can validate, but no one has all classes."""
    files = {name: sorted((photographs / "val" / name).iterdir()) for name in ("blue", "green", "red")}
    pairs = {"p": ("blue", "green"), "q": ("green", "red"), "r": ("red", "blue")}
    rows = [f"{files[name].pop()},{name},{group}" for group, names in pairs.items() for name in names]
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(["image,label,group", *rows]))
    with pytest.raises(UserError, match="a class needs at least two groups"):
        load_data(table)
    for number in (1, 2, 3):
        out = tmp_path / f"fold-{number}"
        job = build_job(
            table, out=out, fold=(number, 3), overrides={k: v for k, v in SMALL.items() if k in RECIPE}
        )
        assert [len(job.data.train), len(job.data.val)] == [4, 2]
    provenance = {"data": {"name": str(table), **job.data_options}}
    metadata = Metadata(class_names=("blue", "green", "red"), provenance=provenance)
    found = find_labelled(metadata, 3, str(table), for_training=True)  # as for INT8
    assert found.train.samples == job.data.train.samples
    table.write_text("\n".join(["image,label,group", *rows, f"{tmp_path}/none.png,grey,s"]))
    with pytest.raises(UserError, match=r"groups.csv: no image of grey can be read; leave the class out by --cl"):
        build_job(table, out=tmp_path / "x", fold=(1, 3))
    table.write_text(f"image,label\n{files['red'][0]},red\n{files['red'][1]},red")
    with pytest.raises(UserError, match=r"groups.csv: only one class \(red\)"):
        build_job(table, out=tmp_path / "x", fold=(1, 2))
