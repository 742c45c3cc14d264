"""One optimizer step: forward and backward over the parts of a batch, then the update of the weights."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iformer.config.recipe import Recipe
from iformer.errors import ConfigError
from iformer.training.distributed import RankContext
from iformer.training.finite import FiniteGuard
from iformer.training.meter import EpochMeter
from iformer.training.protocol import Batch, Task


class OptimizerStep:
    """Makes steps with one network, optimizer and loss scaler; losses go to the meter and past the guard."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        task: Task,
        context: RankContext,
        accelerator: Any,
        network: nn.Module,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        meter: EpochMeter,
        guard: FiniteGuard,
    ) -> None:
        """`network` is what is trained, `model` the same as the accelerator has wrapped it."""
        self.recipe, self.task, self.context = recipe, task, context
        self.accelerator, self.network, self.model = accelerator, network, model
        self.optimizer, self.scaler = optimizer, scaler
        self.meter, self.guard = meter, guard

    def __call__(self, batch: Batch) -> None:
        """One step on a batch as `Workload.prepare` gives it."""
        images = len(batch["indices"])
        parts = split_batch(batch, self.recipe.grad_accum)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            share = len(part["indices"]) / images
            # gradients of the processes are joined in the last backward pass only
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.context.autocast():
                    values = self.task.loss(self.model, part)
                self.guard.check_loss(values["loss"])
                self.meter.add(values, share)
                self.scaler.scale(values["loss"] * share).backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.count(images)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch, of tensors and lists, in at most `parts` parts whose sizes differ by no more than rounding."""
    if parts == 1:
        return [batch]
    chunks = {name: _chunks(value, parts) for name, value in batch.items()}
    return [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=True)]


def _chunks(value: Tensor | list[Any], parts: int) -> Any:
    if isinstance(value, Tensor):
        return value.chunk(parts)
    size = -(-len(value) // parts)  # as torch.chunk cuts
    return [value[start : start + size] for start in range(0, len(value), size)]


def seed_everything(*numbers: int) -> None:
    """Seed the global generators with a mix of numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from it)
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def check_shares(recipe: Recipe, processes: int) -> None:
    """Raise `ConfigError` unless a batch can be cut into equal passes of so many processes."""
    passes = processes * recipe.grad_accum
    if recipe.batch_size % passes:
        raise ConfigError(
            f"recipe.batch_size is {recipe.batch_size}; expected a multiple of {passes}, "
            f"as {processes} processes make it in {recipe.grad_accum} passes each"
        )
    if recipe.batch_size // passes % recipe.images_per_group:
        raise ConfigError(
            f"recipe.batch_size is {recipe.batch_size}, which is {recipe.batch_size // passes} in each of "
            f"{passes} passes; expected an even number there, because mixup and cutmix mix images in pairs"
        )
