"""What a name means, and `load` for every kind of name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import iformer
from iformer.config.variants import network_config
from iformer.errors import ConfigError, UnknownNameError, UserError, WeightsError
from iformer.models.classifier import Classifier
from iformer.models.factory import build, create_model
from iformer.models.weights import read
from iformer.models.weights.checkpoint import Weights, save
from iformer.models.weights.dialects import to_authors
from iformer.models.weights.resolve import (
    Artifact,
    Size,
    is_known_folder,
    load,
    load_classifier,
    resolve,
    resolve_weights,
)
from tiny.networks import randomize, tiny_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(build(tiny_config()), path, class_names=("ant", "bee", "cat", "dog", "elk"))
    return path


def test_a_size_with_and_without_timms_spelling() -> None:
    for name in ("iformer_m", "timm/iformer_m.in1k", "iformer_m.in1k"):
        found = resolve(name)
        assert found == Size(name="iformer_m")
        assert found.config == network_config("iformer_m")
    assert resolve("timm/iformer_l2_distilled.in1k") == Size(name="iformer_l2_distilled")


def test_the_shipped_network_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("elpv").mkdir()  # a folder with the same name is not meant
    network = iformer.load("elpv")
    assert isinstance(network, Classifier)
    assert not network.training
    assert network.metadata.class_names == ("functional", "defective")
    for other in (load_classifier("elpv"), create_model("elpv"), create_model("iformer_t", weights="elpv")):
        assert all(map(torch.equal, other.state_dict().values(), network.state_dict().values()))
    with pytest.raises(WeightsError, match=r"elpv is a folder without best\.safetensors"):
        resolve("./elpv")


def test_a_run_folder_means_its_best_network(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"is a folder without best\.safetensors; give a weight file or a run"):
        resolve(run)
    shutil.copy(checkpoint, run / "best.safetensors")
    for name in (run, str(run), f"{run}/"):
        found = resolve(name)
        assert isinstance(found, Weights)
        assert found.path == run / "best.safetensors"


def test_a_folder_of_folds_names_them(checkpoint: Path, tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"fold-{number}").mkdir()
        shutil.copy(checkpoint, tmp_path / f"fold-{number}" / "best.safetensors")
    with pytest.raises(WeightsError) as caught:
        resolve(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is a folder without best.safetensors; it holds the runs of a cross-validation (fold-1, "
        f"fold-2, fold-10); give one of them, such as {tmp_path / 'fold-1'}"
    )


def test_an_artifact_is_recognised_by_its_record(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    record = tmp_path / "net.onnx.json"
    record.write_text(json.dumps({"format": "iformer-artifact-1", "runtime": "onnx"}))
    found = resolve(path)
    assert found == Artifact(path=path, runtime="onnx")
    for use in (load, load_classifier, resolve_weights, create_model):
        with pytest.raises(UserError, match="is an exported artifact; give the checkpoint from which"):
            use(path)
    for damaged in ("", "[1]", "[" * 100_000, '{"runtime": 5}'):
        record.write_text(damaged)
        assert resolve(path) == Artifact(path=path, runtime=None)
    folder = tmp_path / "net.openvino"
    folder.mkdir()
    (tmp_path / "net.openvino.json").write_text('{"runtime": "openvino"}')
    assert resolve(str(folder)) == Artifact(path=folder, runtime="openvino")


def test_another_file_of_an_artifact_names_the_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "exports" / "net.openvino"
    folder.mkdir(parents=True)
    (folder / "model.xml").write_text("<net/>")
    record = folder.with_name("net.openvino.json")
    record.write_text('{"runtime": "openvino"}')
    for path, kind in (
        (record, "a file of"),
        (folder / "model.xml", "a file of"),
        (folder.parent, "the folder of"),
    ):
        with pytest.raises(WeightsError) as caught:
            resolve(path)
        assert str(caught.value) == f"{path} is {kind} the artifact net.openvino; give {folder}"
    assert is_known_folder(str(folder.parent))  # `iformer info` takes other folders for shards
    assert not is_known_folder(str(tmp_path))
    fold = tmp_path / "folds" / "fold-1" / "best.safetensors"
    fold.parent.mkdir(parents=True)
    fold.touch()
    assert is_known_folder(str(fold.parent.parent))  # which `resolve` refuses, with the names of the folds
    table = tmp_path / "table.csv"
    table.write_text("image,label\n")
    with pytest.raises(WeightsError, match=r"is not a weight file; .* record \(table\.csv\.json\)"):
        resolve(table)


def test_names_that_no_file_can_have(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the name of a network is empty"):
        iformer.load("")
    for use in (iformer.load, lambda name: iformer.predict(name, np.zeros((8, 8, 3), np.uint8)), resolve):
        with pytest.raises(UserError) as caught:
            use(f"./{'a' * 5000}")
        assert str(caught.value).endswith("…' is too long for the name of a file")
    long = tmp_path / f"{'a' * 240}.safetensors"  # the name of its record would be too long
    shutil.copy(checkpoint, long)
    assert resolve(long).path == long  # type: ignore[union-attr]


def test_a_file_of_others_with_the_entry_to_take(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (create_model("iformer_t", num_classes=2) for _ in range(2))
    path = tmp_path / "training.ckpt"
    torch.save({"state_dict": to_authors(first.state_dict(), first.config), "ema": second.state_dict()}, path)
    for entry, expected in ((None, first), ("ema", second)):
        for made in (load(path, entry=entry), create_model("iformer_t", weights=path, entry=entry)):
            assert all(map(torch.equal, made.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("name", ["iformer_t", "elpv"])
def test_entry_is_for_files_of_training_scripts(name: str, checkpoint: Path) -> None:
    for wrong in (name, checkpoint):
        with pytest.raises(UserError, match="--entry"):
            resolve(wrong, entry="model")


def test_a_checkpoint_is_opened_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = read.open_safetensors

    def counting(path: Path) -> object:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(read, "open_safetensors", counting)
    found = resolve(checkpoint)
    assert isinstance(found, Weights)
    assert found.task == "classify"
    assert isinstance(load_classifier(found), Classifier)
    assert opened == [checkpoint]


def test_the_design_for_large_images_is_an_option_of_load(checkpoint: Path) -> None:
    network = build(tiny_config())
    randomize(network)
    save(network, checkpoint)
    plain, hybrid = load(checkpoint), load(checkpoint, attention="hybrid")
    assert hybrid.config.stages[2].windows is not None
    x = torch.randn(1, 3, 288, 320)
    assert not torch.allclose(hybrid(x), plain(x), atol=1e-6)
    with pytest.raises(ConfigError, match="windows given without attention"):
        load(checkpoint, windows="paper")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iformer_x", "did you mean iformer_"),
        ("elpw", "did you mean elpv"),
        ("timm/iformer_q.in1k", r"did you mean .*timm/iformer_\w+\.in1k"),
        ("iformer_mm.in1k", r"did you mean .*iformer_m\.in1k"),
        ("zzz", "known: elpv, iformer_h, "),
    ],
)
def test_an_unknown_name_lists_what_a_name_may_be(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; {message}") as caught:
        resolve(name)
    assert "A model is a size, a shipped checkpoint, a file, a run folder, an artifact or hf-hub:" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.safetensors", "none/best.safetensors", "runs/none", "net.onnx"])
def test_a_missing_file_is_not_an_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"{name} does not exist"):
        resolve(name)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:only", "hf-hub:a/b@", "hf-hub:a/b/../../c d@"])
def test_a_malformed_name_on_the_hub(name: str) -> None:
    with pytest.raises(WeightsError, match="expected hf-hub:USER/NAME"):
        resolve(name)
