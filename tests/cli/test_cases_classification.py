"""Classification data and weights as people have them, through the real verbs."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, PngImagePlugin

from iformer.cli.main import main
from iformer.models.classifier import Classifier
from iformer.models.weights.checkpoint import save
from tiny.cases import classes, picture, rename
from tiny.networks import tiny_config

ON_CPU = ("--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the classes cat and dog."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save(Classifier(tiny_config(num_classes=2)), path, class_names=("cat", "dog"))
    return path


@pytest.fixture
def train(network: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run one epoch of `train`; returns the exit code and what was said on stderr."""

    def run(data: Path | str, out: Path | str, *options: str) -> tuple[int, str]:
        settings = ["--epochs", "1", "--batch-size", "4", "--size", "32", "--precision", "fp32"]
        settings += ["--set", "workers=0", "--weights", "none", "--no-tensorboard", "--device", "cpu"]
        arguments = ["train", "--data", str(data), "--model", str(network), "--out", str(out), *settings, *options]
        capsys.readouterr()
        code = main(arguments)
        return code, capsys.readouterr().err

    return run


def evaluated(capsys: pytest.CaptureFixture[str], weights: Path, data: Path, *options: str) -> tuple[int, str]:
    """The number of images that `eval` used, and its notes."""
    capsys.readouterr()
    assert main(["eval", str(weights), "--data", str(data), *ON_CPU, *options, "--json"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out)["metrics"]["images"], said.err


def answers(capsys: pytest.CaptureFixture[str], weights: Path, *sources: Path | str) -> dict[str, str]:
    """The error of each file, or an empty text, by its name."""
    capsys.readouterr()
    main(["predict", *map(str, sources), "--weights", str(weights), "--device", "cpu", "--json"])
    records = map(json.loads, capsys.readouterr().out.splitlines())
    return {Path(record["file"]).name: record.get("error", "") for record in records}


@pytest.mark.sweep
def test_runs_inside_the_data_are_never_data(
    tmp_path: Path, train: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(classes(tmp_path / "data"))
    assert train(".", "runs/a")[0] == 0
    code, said = train(".", "runs/b")
    assert code == 0
    assert "runs: holds runs of this package, so it is not read as a class" in said
    assert "10 images of 2 classes" in said
    assert len(answers(capsys, Path("runs/b"), ".")) == 12 // 2  # two classes with files of the same names


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("seg_train", "seg_test")])
def test_splits_under_other_names_are_evaluated(
    names: tuple[str, str], tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / names[0], count=5)
    classes(tmp_path / names[1], count=3, first=500)
    assert evaluated(capsys, network, tmp_path) == (6, "")


def test_splits_that_cannot_be_told_from_classes_are_refused(
    tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    for first, part in enumerate(("part1", "part2")):
        classes(tmp_path / "data" / part, count=2, first=100 * first)
    code, said = train(tmp_path / "data", tmp_path / "run")
    assert code == 1
    assert "part1/, part2/ contain the same sub-folders (cat, dog)" in said
    assert f"list them in {tmp_path / 'data' / 'classes.txt'}" in said
    assert not (tmp_path / "run").exists()


def test_any_part_of_the_classes_is_evaluated(
    tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / "one", ["cat"], count=5)
    assert evaluated(capsys, network, tmp_path / "one") == (
        5,
        "note: no image of 1 of the network's 2 classes: dog\n",
    )
    classes(tmp_path / "single", ["cat"], count=5)
    picture(tmp_path / "single" / "dog" / "0.jpg", 7)
    assert evaluated(capsys, network, tmp_path / "single") == (6, "")
    classes(tmp_path / "alone" / "test", count=4)
    assert evaluated(capsys, network, tmp_path / "alone") == (8, "")


@pytest.mark.sweep
def test_names_that_are_not_utf_8(
    tmp_path: Path, train: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = classes(tmp_path / "data"), tmp_path / "run"
    rename(data / "cat" / "0.jpg", b"caf\xe9.jpg")
    rename(data / "dog", b"chien_\xe9t\xe9")
    code, said = train(data, run)
    assert code == 0, said
    assert r"chien_\\xe9t\\xe9" in (run / "report.md").read_text()  # a backslash is escaped in Markdown
    assert evaluated(capsys, run, data, "--split", "all")[0] == 12
    assert main(["predict", str(data), "--weights", str(run), "--out", str(tmp_path / "out")]) == 0
    assert r"caf\udce9.jpg" in capsys.readouterr().out
    assert main(["convert", str(data), str(tmp_path / "shards"), "--to", "shards"]) == 0
    assert evaluated(capsys, run, tmp_path / "shards", "--split", "all")[0] == 12
    assert main(["info", str(tmp_path / "shards"), "--verify"]) == 0


def test_classes_of_another_script_are_the_same_where_file_names_are_ascii(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = tmp_path / "scripts.safetensors", tmp_path / "data"
    save(Classifier(tiny_config(num_classes=2)), weights, class_names=("犬", "кошка 🐱"))
    classes(data, ["犬", "кошка 🐱"], count=2)
    assert evaluated(capsys, weights, data)[0] == 4
    names = tuple(os.fsencode(name).decode("ascii", "surrogateescape") for name in ("犬", "кошка 🐱"))
    save(Classifier(tiny_config(num_classes=2)), weights, class_names=names)  # by a process with LC_ALL=C
    assert evaluated(capsys, weights, data)[0] == 4


def test_system_folders_hold_no_images(tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = classes(tmp_path / "data", count=4)
    (data / "lost+found").mkdir()
    for folder in (data / "$RECYCLE.BIN", data / "cat" / "@eaDir" / "0.jpg", data / "System Volume Information"):
        picture(folder / "thumb.jpg", 99)
    assert evaluated(capsys, network, data) == (8, "")
    assert len(answers(capsys, network, data / "cat")) == 4


def test_every_way_to_store_a_picture_is_answered_or_named(
    tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.open(picture(tmp_path / "rgb.png", 0))
    gray = np.asarray(image.convert("L")).astype(np.uint16)
    for name in ("cmyk.jpg", "cmyk.tif"):
        image.convert("CMYK").save(tmp_path / name)
    Image.fromarray(gray * 257 >> 4).save(tmp_path / "twelve.png")
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "float.tif")
    image.save(tmp_path / "animation.gif", save_all=True, append_images=[image.rotate(90)])
    image.convert("LAB").save(tmp_path / "lab.tif")
    text = PngImagePlugin.PngInfo()
    text.add_text("much", "x" * (3 << 20), zip=True)
    image.save(tmp_path / "text.png", pnginfo=text)
    image.resize((5, 40)).save(tmp_path / "narrow.jpg")
    image.resize((4, 4)).save(tmp_path / "small.png")
    image.convert("RGBA").save(tmp_path / "web.jpg", "WEBP")
    file = io.BytesIO()
    image.save(file, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(file.getvalue()[:-200])
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200)
    found = answers(capsys, network, tmp_path)
    assert len(found) == 13
    assert {name for name, error in found.items() if error} == {"truncated.jpg", "phone.jpg"}
    assert "truncated" in found["truncated.jpg"]


@pytest.mark.sweep
def test_one_picture_under_two_labels_and_in_both_splits_is_reported(
    tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    data = tmp_path / "data"
    classes(data / "train", count=5)
    classes(data / "val", count=5, first=500)
    shutil.copy(data / "train" / "cat" / "0.jpg", data / "train" / "dog" / "same.jpg")
    with Image.open(data / "train" / "cat" / "1.jpg") as image:
        image.save(data / "val" / "cat" / "saved_again.png")
    code, said = train(data, tmp_path / "run")
    assert code == 0
    assert "1 validation image also among the training images" in said
    assert f"{data / 'val' / 'cat' / 'saved_again.png'} = {data / 'train' / 'cat' / '1.jpg'}" in said
    assert "1 image also under another label" in said
    assert "same.jpg" in said
    assert "1 image also under another label" in (tmp_path / "run" / "report.md").read_text()


def test_checkpoints_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    image = picture(tmp_path / "a.png", 0)
    network = timm.create_model("iformer_t", num_classes=2)
    state = network.state_dict()
    forms = {
        "averaged": {"model_ema": torch.optim.swa_utils.AveragedModel(network).state_dict()},
        "lightning": {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        "tutorial": {"model_state_dict": state, "epoch": 2},
        "net": {"net": state},
    }
    for name, contents in forms.items():
        torch.save(contents, tmp_path / f"{name}.pth")
        assert answers(capsys, tmp_path / f"{name}.pth", image) == {"a.png": ""}, name
    torch.save(network, tmp_path / "module.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name, complaint in (("module", "refused, nothing was run"), ("legacy", "save it again with torch.save")):
        assert main(["info", str(tmp_path / f"{name}.pth")]) == 1
        error = capsys.readouterr().err
        assert complaint in error
        assert f"{name}.pth" in error
