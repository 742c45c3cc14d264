"""FSDP on two gloo processes: the losses of one process, and states that load sharded or whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.errors import ConfigError
from iformer.training.loop import train
from tiny.classification import SYNCHRONISED, launch, step_losses, tiny_job, tiny_recipe


@pytest.mark.sweep
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_sharded_run_equals_the_run_of_one_process_and_continues_there(many_images: Path, tmp_path: Path) -> None:
    fields = SYNCHRONISED
    launch(many_images, tmp_path / "two", {**fields, "parallel": "fsdp"}, "--plain")
    train(tiny_job(many_images, tmp_path / "one", recipe=tiny_recipe(**fields), drop_path_rate=0.0))
    losses = [step_losses(tmp_path / name) for name in ("one", "two")]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    one, two = (load_file(tmp_path / name / "resume.safetensors") for name in ("one", "two"))
    assert {name: tensor.shape for name, tensor in two.items()} == {
        name: tensor.shape for name, tensor in one.items()
    }
    # the state of two sharded processes is read by one whole process: nothing is left to do but to evaluate
    job = tiny_job(many_images, tmp_path / "two", recipe=tiny_recipe(**fields), drop_path_rate=0.0, resume=True)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert train(job).metrics["confusion"] == metrics["confusion"]


def test_running_average_is_not_sharded() -> None:
    with pytest.raises(ConfigError, match=r"expected ddp, because ema_decay is set \(null turns it off\)"):
        tiny_recipe(parallel="fsdp", ema_decay=0.9)
