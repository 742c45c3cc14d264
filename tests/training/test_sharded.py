"""FSDP on two gloo processes: the losses of one process, and states that load sharded or not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from iformer.errors import ConfigError
from iformer.training.loop import train

spec = importlib.util.spec_from_file_location(
    "test_distributed_launch", Path(__file__).with_name("test_distributed.py")
)
assert spec is not None
assert spec.loader is not None
distributed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(distributed)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_sharded_run_is_the_run_of_one_process_and_continues_there(
    tiny: ModuleType, images: Path, tmp_path: Path
) -> None:
    fields: dict[str, object] = {
        **tiny.PLAIN,
        "batch_size": 16,
        "epochs": 2,
        "log_every": 1,
        "scale": None,
        "hflip": 0.0,
        "color_jitter": 0.0,
        "clip_grad": 1.0,
        "sync_batch_norm": True,
    }
    distributed.launch(images, tmp_path / "two", {**fields, "parallel": "fsdp"}, "--plain")
    train(tiny.tiny_job(images, tmp_path / "one", recipe=tiny.tiny_recipe(**fields), drop_path_rate=0.0))
    losses = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses.append([record["loss"] for record in map(json.loads, lines) if record["event"] == "step"])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    one, two = (load_file(tmp_path / name / "resume.safetensors") for name in ("one", "two"))
    assert {name: tensor.shape for name, tensor in two.items()} == {
        name: tensor.shape for name, tensor in one.items()
    }
    # the state of two sharded processes is read by one whole process: nothing is left to do but to evaluate
    job = tiny.tiny_job(
        images, tmp_path / "two", recipe=tiny.tiny_recipe(**fields), drop_path_rate=0.0, resume=True
    )
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert train(job).metrics["confusion"] == metrics["confusion"]


def test_running_average_is_not_sharded(tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match="parallel is 'fsdp'; expected ddp where there is a running average"):
        tiny.tiny_recipe(parallel="fsdp", ema_decay=0.9)
