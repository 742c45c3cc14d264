"""Results do not depend on the modes of torch, and on the streams, of the program that calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

import iformer
from iformer.config.variants import VARIANTS
from iformer.models.classifier import Classifier
from tiny.classification import CLASSES
from tiny.networks import tiny_config, tiny_variant


class Tee:
    """A stream that has only what `print` needs."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    """As `torch.set_default_device("cuda")` does, on a device where nothing can be computed."""
    torch.set_default_device("meta")
    try:
        yield
        assert torch.zeros(()).is_meta
    finally:
        torch.set_default_device(None)


@contextmanager
def plain_stderr() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", Tee())
        yield


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(images, tmp_path_factory.mktemp("modes") / "run")


def losses(images: Path, out: Path) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
        run = iformer.train(
            images,
            out=out,
            model="iformer_tiny",
            weights="none",
            epochs=1,
            size=64,
            batch_size=16,
            workers=0,
            device="cpu",
            precision="fp32",
            tracker="none",
        )
    return [run.history[-1]["train_loss"], run.metrics["loss"]]


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        default_dtype(),
        default_device(),
        plain_stderr(),
    ],
    ids=["no_grad", "inference_mode", "autocast", "float64", "device", "stderr"],
)
def test_training_is_the_same(
    mode: AbstractContextManager[None], images: Path, tmp_path: Path, trained: list[float]
) -> None:
    with mode:
        assert losses(images, tmp_path / "run") == trained


@pytest.mark.parametrize(
    "mode",
    [torch.autocast("cpu", torch.bfloat16), default_dtype(), default_device()],
    ids=["autocast", "float64", "device"],
)
def test_evaluation_is_the_same(mode: AbstractContextManager[None], images: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    iformer.save(Classifier(tiny_config(num_classes=3)), path, class_names=list(CLASSES))
    expected = iformer.evaluate(path, images, workers=0)
    with mode:
        evaluation = iformer.evaluate(path, images, workers=0)
    assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)
    assert evaluation.top1 == expected.top1


def test_a_default_device_changes_no_answer(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    iformer.save(Classifier(tiny_config(num_classes=3)), path)
    photograph = next(images.rglob("*.png"))
    [expected] = iformer.predict(path, photograph)
    with default_device():
        network = iformer.load(path)
        assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
        [by_name], [by_network] = iformer.predict(path, photograph), iformer.predict(network, photograph)
        iformer.export(network, "onnx", out=tmp_path / "network.onnx")
    assert by_name.answers == by_network.answers == expected.answers
    [by_artifact] = iformer.predict(tmp_path / "network.onnx", photograph)
    assert by_artifact.answers[0].score == pytest.approx(expected.answers[0].score, abs=1e-4)
