"""The average follows the statistics of batch norms, whatever a wrapper does with the network's buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from iformer.training.loop import train
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import read_state
from tiny.classification import tiny_job, tiny_recipe


def test_buffers_that_a_wrapper_replaces_are_averaged(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_other_buffers(self: Any, model: nn.Module) -> nn.Module:
        """What Accelerate does on several processes."""
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.clone())
        return model

    monkeypatch.setattr(accelerate.Accelerator, "prepare_model", with_other_buffers)
    train(tiny_job(images, tmp_path / "run", recipe=tiny_recipe(epochs=1, ema_decay=0.5)))
    saved = read_state(RunFolder(tmp_path / "run").state)
    model, average = saved.group("model"), saved.group("average")
    counters = [name for name in model if name.endswith("num_batches_tracked")]
    assert {int(average[name]) for name in counters} == {int(model[name]) for name in counters} == {6}
    for name in (name for name in model if name.endswith("running_mean")):
        torch.testing.assert_close(average[name], model[name], atol=0.1, rtol=0.5)
