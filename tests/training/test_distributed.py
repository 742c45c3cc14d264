"""Training on two processes equals training on one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.training.loop import train
from iformer.training.records.history import read_history
from tiny.classification import PLAIN, SYNCHRONISED, Linear, launch, step_losses, tiny_job, tiny_recipe


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.sweep
def test_two_processes_train_and_evaluate_as_one(images: Path, tmp_path: Path) -> None:
    # 12 validation images in steps of 10: one process gets one image more than the other in the last step
    fields = {**PLAIN, "epochs": 2, "eval_batch_size": 10, "log_every": 1, "checkpoint_steps": 5}
    launch(images, tmp_path / "two", fields, "--linear", torchrun=True)
    single = tiny_job(images, tmp_path / "one", recipe=tiny_recipe(**fields))
    result = train(replace(single, model=Linear()))
    one, two = (load_file(tmp_path / name / "resume.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
    histories = [read_history(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    for record, other in zip(*histories, strict=True):
        assert other["train_loss"] == pytest.approx(record["train_loss"], abs=1e-5)
        assert other["val_loss"] == pytest.approx(record["val_loss"], abs=1e-5)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert metrics["images"] == 12
    assert metrics["confusion"] == result.metrics["confusion"]
    # a state of two processes continues on one
    again = tiny_job(images, tmp_path / "two", recipe=tiny_recipe(**fields), resume=True)
    assert train(replace(again, model=Linear())).metrics["confusion"] == metrics["confusion"]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.sweep
def test_with_synchronised_batch_norm_two_processes_have_the_losses_of_one(
    many_images: Path, tmp_path: Path
) -> None:
    """Batch norms everywhere, clipping and a running average: a batch of 64 on one, or 32 on each of two."""
    fields = {**SYNCHRONISED, "ema_decay": 0.9}
    launch(many_images, tmp_path / "two", fields, "--plain")
    train(tiny_job(many_images, tmp_path / "one", recipe=tiny_recipe(**fields), drop_path_rate=0.0))
    one, two = (step_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-5)
