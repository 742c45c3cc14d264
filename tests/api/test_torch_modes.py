"""Training does not depend on the modes of torch, and on the streams, of the program that calls it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

import iformer
from iformer.config.variants import VARIANTS
from tiny.networks import tiny_variant


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
        plain_stderr(),
    ],
    ids=["no_grad", "inference_mode", "autocast", "float64", "stderr"],
)
def test_training_is_the_same(
    mode: AbstractContextManager[None], images: Path, tmp_path: Path, trained: list[float]
) -> None:
    with mode:
        assert losses(images, tmp_path / "run") == trained
