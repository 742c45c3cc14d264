"""Engines: the answers of a network through a temporary export, and when one is made."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import iformer
from iformer.api import engine
from iformer.cli.main import main
from iformer.deploy.artifact import record_path
from iformer.errors import MissingDependencyError, UserError
from iformer.models.weights.checkpoint import save
from iformer.tasks.subject import Subject, open_subject
from tiny import dense
from tiny.classification import make_images
from tiny.networks import labelled_classifier

pytest.importorskip("onnxruntime")

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "classifier": labelled_classifier,
    "detector": dense.light_detector,
    "segmenter": dense.light_segmenter,
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def classifier_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps the classifier's export."""
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture
def export_once(monkeypatch: pytest.MonkeyPatch, classifier_export: Path, shared_exports: Path) -> list[str]:
    """Make every export once for all tests. The list gets the runtime of each export that is asked for."""
    export, asked = engine.export_artifact, []

    def kept(network: Any, path: Path, runtime: str, **options: Any) -> None:
        asked.append(runtime)
        assert options == {"precision": "fp32"}
        if network.metadata.task == "classify":
            made = classifier_export / path.name
            if not made.exists():
                export(network, made, runtime, **options)
            shutil.copy(made, path)
            shutil.copy(record_path(made), record_path(path))
        else:
            kind = "detector" if network.metadata.task == "detect" else "segmenter"
            made = dense.copy_of_export(kind, runtime, shared_exports, path.parent)
            made.rename(path)
            record_path(made).rename(record_path(path))

    monkeypatch.setattr(engine, "export_artifact", kept)
    return asked


def predictions(network: nn.Module, paths: list[Path], **options: Any) -> list[Any]:
    """Return the predictions with their masks; notes are ignored."""
    found = iformer.predict(network, paths, device="cpu", warn=lambda lines: None, **options)
    return [(prediction, prediction.masks) for prediction in found]


@pytest.mark.parametrize("kind", BUILDERS)
def test_answers_are_those_of_torch(
    kind: str, photographs: list[Path], temporary: Path, export_once: list[str]
) -> None:
    network = BUILDERS[kind]()
    options = {"min_score": 0.3} if kind == "detector" else {}
    ours = predictions(network, photographs, engine="torch", **options)
    assert export_once == []
    theirs = predictions(network, photographs, engine="onnx", **options)
    assert export_once == ["onnx"]
    assert not list(temporary.iterdir())
    assert sum(len(prediction.answers) for prediction, _ in ours) >= 7
    for (our, our_masks), (their, their_masks) in zip(ours, theirs, strict=True):
        if kind == "segmenter":
            assert (our_masks != their_masks).mean() < 1e-3
        else:
            assert [a.name for a in our.answers] == [a.name for a in their.answers]
            scores = [[answer.score for answer in prediction.answers] for prediction in (our, their)]
            np.testing.assert_allclose(*scores, atol=1e-5)


def test_evaluations_are_those_of_torch(tmp_path: Path, temporary: Path, export_once: list[str]) -> None:
    network = labelled_classifier()
    data = make_images(tmp_path / "data", 2)
    for split in ("train", "val"):  # the network has five classes
        for name, named in zip(("blue", "green", "red"), ("ant", "bee", "cat"), strict=True):
            (data / split / name).rename(data / split / named)
    said: list[str] = []
    options: dict[str, Any] = {"device": "cpu", "workers": 0, "split": "val", "warn": said.extend}
    ours = iformer.evaluate(network, str(data), **options)
    theirs = iformer.evaluate(network, str(data), engine="onnx", **options)
    assert export_once == ["onnx"]
    assert any(line.startswith("ONNX Runtime computes the answers") for line in said)
    assert not list(temporary.iterdir())
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-5)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="--precision is bf16, and --engine onnx computes in fp32"):
        iformer.evaluate(network, str(data), engine="onnx", precision="bf16", **options)


@pytest.mark.parametrize("at_first", [True, False])
def test_nothing_is_left_after_an_interruption(
    at_first: bool, temporary: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(network: Any, path: Path, *_: Any, **__: Any) -> None:
        assert path.parent.parent == temporary
        path.write_bytes(b"begun")
        raise KeyboardInterrupt if at_first else OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(engine, "export_artifact", stop)
    expected = KeyboardInterrupt if at_first else UserError
    with pytest.raises(
        expected, match=None if at_first else "No space left on device.*; --engine torch needs none"
    ):
        predictions(labelled_classifier(), photographs, engine="onnx")
    assert not list(temporary.iterdir())


def subject_on(device: str = "cpu", kind: str = "classifier") -> Subject:
    opened = open_subject(BUILDERS[kind](), device="cpu")
    return Subject(model=opened.model, row=opened.row, device=torch.device(device), title="")


def test_auto_exports_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("asked for")

    monkeypatch.setattr(engine, "export_artifact", refuse)
    enough = engine.IMAGES_PER_THREAD * torch.get_num_threads()
    options: dict[str, Any] = {"warn": lambda lines: None}
    with pytest.raises(UserError, match="no export for --engine onnx: asked for"):
        engine.with_engine(subject_on(), "auto", images=enough, **options)

    def unchanged(subject: Subject, **more: Any) -> None:
        assert engine.with_engine(subject, "auto", **{"images": enough, **options, **more}) is subject

    unchanged(subject_on(), images=enough - 1)
    unchanged(subject_on(), explain=True)
    unchanged(subject_on("cuda"))
    unchanged(subject_on(kind="detector"))  # its gain was not measured
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    unchanged(subject_on())
    with pytest.raises(MissingDependencyError, match=r"onnxscript.*pip install"):
        engine.with_engine(subject_on(), "onnx", **options)


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (labelled_classifier, {"engine": "tvm"}, "engine is 'tvm'; expected auto, torch, onnx, openvino"),
        (labelled_classifier, {"explain": True}, "--engine is 'onnx', which does not show the attention"),
        (dense.rcnn, {}, "exports of Detector see images of one size and answer differently, leave it out"),
        (dense.semantic_fpn, {}, "exports of Segmenter see images of one size and answer differently"),
    ],
)
def test_what_an_engine_cannot_do(
    network: Callable[[], nn.Module], options: dict[str, Any], expected: str, photographs: list[Path]
) -> None:
    with pytest.raises(UserError, match=expected):
        predictions(network(), photographs, **{"engine": "onnx", **options})


def test_no_engine_on_other_devices_and_for_artifacts(tmp_path: Path, shared_exports: Path) -> None:
    with pytest.raises(UserError, match="--engine is 'onnx', which runs on the CPU; add --device cpu"):
        engine.with_engine(subject_on("cuda"), "onnx", warn=lambda lines: None)
    artifact = open_subject(dense.copy_of_export("detector", "onnx", shared_exports, tmp_path))
    for name in ("torch", "onnx"):
        with pytest.raises(UserError, match=f"--engine is '{name}'; an artifact runs in its own runtime"):
            engine.with_engine(artifact, name, warn=lambda lines: None)
    assert engine.with_engine(artifact, "auto", images=10**9, warn=lambda lines: None) is artifact


def test_the_verb_says_which_engine_answers(
    tmp_path: Path, photographs: list[Path], export_once: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.safetensors"
    save(labelled_classifier(), path)
    command = ["predict", str(photographs[0]), "--weights", str(path), "--json", "--device", "cpu"]
    assert main([*command, "--engine", "onnx"]) == 0
    said = capsys.readouterr().err
    assert (
        "note: ONNX Runtime computes the answers, after a temporary export of some seconds (--engine onnx)" in said
    )
    assert "by tiny (onnx, fp32) on cpu" in said
    assert main(command) == 0
    assert "by tiny on cpu" in capsys.readouterr().err
    assert export_once == ["onnx"]


@pytest.mark.sweep
def test_threads_export_at_the_same_time(photographs: list[Path]) -> None:
    networks = [labelled_classifier() for _ in range(2)]
    streams = sys.stdout, sys.stderr
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(lambda network: predictions(network, photographs[:1], engine="onnx"), networks))
    assert [len(each) for each in found] == [1, 1]
    assert (sys.stdout, sys.stderr) == streams
    assert not sys.stdout.closed
