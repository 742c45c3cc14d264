"""Wrong types and values of arguments are one line that names the argument, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iformer
from iformer.config.checking import check_arguments
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.light_detector import LightDetector
from tiny.hub import TOKEN, running_hub
from tiny.networks import labelled_classifier

NAN = float("nan")
WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "predict": [
        ({"top_k": "3"}, "top_k is '3'; expected a whole number"),
        ({"top_k": 2.5}, "top_k is 2.5; expected a whole number"),
        ({"top_k": True}, "top_k is True; expected a whole number"),
        ({"batch_size": "4"}, "batch_size is '4'; expected a whole number"),
        ({"workers": 1.5}, "workers is 1.5; expected a whole number"),
        ({"workers": 0}, "workers is 0; expected 1 or more"),
        ({"min_score": "0.5"}, "min_score is '0.5'; expected a number"),
        ({"min_score": NAN}, "min_score is nan; expected a number"),
        ({"min_score": 2}, "min_score is 2; expected a number from 0 to 1"),
        ({"iou": 0}, "iou is 0; expected a number above 0, to 1"),
        ({"tile": 64.5}, "tile is 64.5; expected a whole number"),
        ({"overlap": "0.3"}, "overlap is '0.3'; expected a number"),
        ({"max_detections": 10**9}, "max_detections is 1000000000; expected a whole number from 1 to 100000"),
        ({"explain": "no"}, "explain is 'no'; expected true or false"),
        ({"out": 5}, "out is 5; expected a text or a path"),
        ({"out": ""}, r"out is ''; expected a text \(length 1 to 4096\) or a path"),
        ({"warn": 5}, "warn is 5; expected a function"),
        ({"model": None}, "a network is named by a text or a path, not by NoneType"),
        ({"model": ["a"]}, "a network is named by a text or a path, not by list"),
    ],
    "evaluate": [
        ({"batch_size": "4"}, "batch_size is '4'; expected a whole number"),
        ({"val_split": "0.2"}, "val_split is '0.2'; expected a number"),
        ({"workers": -1}, "workers is -1; expected a whole number from 0 to 1024"),
        ({"data": None}, "data is None; expected a text or a path"),
        ({"data": b"x"}, "data is b'x'; expected a text or a path"),
        ({"data": ""}, "data is ''; expected a text"),
        ({"data": np}, "data is of type module; expected a text or a path"),
    ],
    "train": [
        ({"data": ["a"]}, r"data is \['a'\]; expected a text or a path"),
        ({"out": None}, "out is None; expected a text or a path"),
        ({"model": 5}, "model is 5; expected a text or a path"),
        ({"recipe": 5}, "recipe is 5; expected a text or a path"),
        ({"classes": [1, 2]}, r"classes is \[1, 2\]; expected a list of texts"),
        ({"classes": {"red", "blue"}}, "classes is of type set; expected a list of texts"),
        ({"settings": 5}, "settings is 5; expected a mapping"),
        ({"tracker": 5}, "tracker is 5; expected a text or a list of texts"),
        ({"val_split": "a"}, "val_split is 'a'; expected a number"),
        ({"resume": "no"}, "resume is 'no'; expected true or false"),
    ],
    "cross_validate": [({"folds": 1}, "folds is 1; expected a whole number from 2 to 100")],
    "pretrain": [({"teacher": 5}, "teacher is 5; expected a text or a path")],
    "export": [
        ({"to": None}, "to is None; expected a text or a list of texts"),
        ({"to": ["onnx", 5]}, r"to is \['onnx', 5\]; expected a text or a list of texts"),
        ({"out": ""}, "out is ''; expected a text"),
        ({"size": "32"}, "size is '32'; expected a whole number or 2 values"),
        ({"size": 32.5}, "size is 32.5; expected a whole number or 2 values"),
        ({"batch": "4"}, "batch is '4'; expected 'dynamic' or a whole number"),
        ({"opset": "17"}, "opset is '17'; expected a whole number"),
        ({"max_drop": "1"}, "max_drop is '1'; expected a number"),
        ({"images": 5}, "images is 5; expected a text or a path or a list"),
        ({"images": [5]}, "int is not the name of an image"),
        ({"model": 5}, "a network is named by a text or a path, not by int"),
    ],
    "push": [
        ({"run": 5}, "run is 5; expected a text or a path or Module"),
        ({"repo": 5}, "repo is 5; expected a text"),
        ({"run": torch.nn.Linear(1, 1)}, "Linear is not a network of this package"),
    ],
    "load": [({"name": 5}, "a network is named by a text or a path, not by int")],
}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return labelled_classifier()


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_are_one_line(name: str, classifier: Classifier, images: Path, tmp_path: Path) -> None:
    function = getattr(iformer, name)
    given: dict[str, Any] = {
        "predict": {"model": classifier, "images": images / "val" / "red"},
        "evaluate": {"model": classifier, "data": images},
        "train": {"data": images, "out": tmp_path / "run"},
        "cross_validate": {"data": images, "out": tmp_path / "run"},
        "pretrain": {"data": images, "out": tmp_path / "run"},
        "export": {"model": classifier, "out": tmp_path / "net.onnx"},
        "push": {"run": classifier, "repo": "ann/flowers"},
        "load": {},
    }[name]
    for wrong, message in WRONG[name]:
        with pytest.raises(UserError, match=message) as caught:
            function(**{**given, **wrong})
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


LONG = "a" * 300
NAMES = [
    (LONG, "too long"),
    (f"x/{LONG}/y", "too long|no such folder|no such file|No such file"),
    ("a\0b", "without NUL characters"),
]


@pytest.mark.parametrize(("name", "reason"), NAMES)
@pytest.mark.parametrize("kind", [str, Path])
def test_names_that_no_file_can_have(
    name: str,
    reason: str,
    kind: type[Any],
    classifier: Classifier,
    detector: LightDetector,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = kind(name)
    table, weights, artifact = (kind(name + suffix) for suffix in (".csv", ".safetensors", ".onnx"))
    settings = {"model": "iformer_t", "weights": "none", "tracker": "none", "warn": lambda lines: None}
    calls: list[Callable[[], Any]] = [
        lambda: iformer.predict(classifier, images, out=given),
        lambda: iformer.evaluate(classifier, given),
        lambda: iformer.evaluate(classifier, table),
        lambda: iformer.evaluate(detector, given),
        lambda: iformer.train(given, out="run"),
        lambda: iformer.train(given, out="run", recipe="detection-light"),
        lambda: iformer.train(given, out="run", recipe="segmentation-light"),
        lambda: iformer.train(images, out=given, **settings),
        lambda: iformer.train(images, out=given, resume=True, **settings),
        lambda: iformer.cross_validate(images, out=given, folds=2, **settings),
        lambda: iformer.export(classifier, to="onnx", images=given),
        lambda: iformer.export(classifier, to="onnx", out=artifact),
        lambda: iformer.export(classifier, to="onnx", precision="int8", calibration=given),
        lambda: iformer.load(weights),
        lambda: iformer.export(weights, to="onnx"),
        lambda: iformer.push(weights, "ann/flowers"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=rf"{reason}|does not exist") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "\0" not in str(caught.value)
    unknown: list[Callable[[], Any]] = [
        lambda: iformer.load(given),
        lambda: iformer.train(images, out="run", recipe=given),
        lambda: iformer.train(images, out="run", model=given),
        lambda: iformer.pretrain(images, out="run", teacher=given),
        lambda: iformer.push(given, "ann/flowers"),
        lambda: iformer.save(classifier, weights),
    ]
    for call in unknown:
        with pytest.raises(UserError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have_is_answered_at_its_place(classifier: Classifier, images: Path) -> None:
    image = next((images / "val" / "red").iterdir())
    long, nul, read = iformer.predict(classifier, [LONG + ".png", "a\0b", image])
    assert long.error == "no such file or folder; the name is too long for a file"
    assert nul.error == "no such file or folder; no name of a file has a NUL character"
    assert read.error is None


def test_a_run_cannot_be_resumed_below_a_file(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"holds no run to resume|is not a folder|cannot write into"):
        iformer.train(out=tmp_path / "file" / "run", resume=True)


def test_results_that_cannot_be_written_are_one_line(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    for call in (
        lambda: iformer.predict(classifier, images / "val" / "red", out=out),
        lambda: iformer.export(classifier, out=out / "net.onnx"),
        lambda: iformer.train(
            images, out=out, model="iformer_t", weights="none", tracker="none", warn=lambda lines: None
        ),
    ):
        with pytest.raises(UserError, match=f"cannot write into {out}"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numbers_of_numpy_and_torch_are_numbers(classifier: Classifier, images: Path) -> None:
    counts: list[Any] = [np.int64(2), torch.tensor(2)]
    for top_k in counts:
        answer = next(iformer.predict(classifier, images / "val" / "red", top_k=top_k, flip=np.bool_(False)))
        assert len(answer.answers) == 2


def test_a_network_in_the_place_of_a_name(classifier: Classifier, tmp_path: Path) -> None:
    calls: tuple[Callable[..., Any], ...] = (iformer.train, iformer.cross_validate, iformer.pretrain)
    for function in calls:
        with pytest.raises(UserError, match=r"model is a network; .* iformer\.save\(network, PATH\)"):
            function("photos", model=classifier, out=tmp_path / "run")


def test_a_network_is_pushed_as_it_is(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub({}, tmp_path / "cache"):
        pushed = iformer.push(classifier, "ann/flowers")
        again = iformer.load(pushed.name)
    for key, value in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    with pytest.raises(UserError, match="--last needs a run folder; a network is not one"):
        iformer.push(classifier, "ann/flowers", last=True)


def test_every_function_is_checked_against_all_of_its_annotations() -> None:
    for name in WRONG.keys() - {"load"}:
        function = getattr(iformer, name)
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is not parameter.empty
        }
        check_arguments(function, defaults)
