"""One optimizer step: forward and backward over the micro-batches of a batch, then the update of the weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
from iformer.training.state import TrainState


class OptimizerStep:
    """One optimizer step per call: train a network on one batch."""

    def __init__(
        self,
        state: TrainState,
        task: Task,
        recipe: Recipe,
        context: RankContext,
        *,
        meter: EpochMeter,
        guard: FiniteGuard,
        model: nn.Module | None = None,
    ) -> None:
        """Prepare training of `state.model`. `model` is its DistributedDataParallel wrapper; None: not wrapped."""
        self.state, self.task, self.recipe, self.context = state, task, recipe, context
        self.meter, self.guard = meter, guard
        self.model = state.model if model is None else model

    def __call__(self, batch: Batch) -> None:
        """Do one optimizer step on a batch from `Workload.prepare`."""
        state = self.state
        images = len(batch["indices"])
        micro_batches = split_batch(batch, self.recipe.grad_accum)
        for number, micro_batch in enumerate(micro_batches, start=1):
            share = len(micro_batch["indices"]) / images
            # the last backward pass averages the gradients of the ranks
            last = number == len(micro_batches)
            with nullcontext() if last else getattr(self.model, "no_sync", nullcontext)():
                with self.context.autocast(), _explain_single_images():
                    values = self.task.loss(self.model, micro_batch)
                self.guard.check_loss(values["loss"])
                self.meter.add(values, share)
                state.scaler.scale(values["loss"] * share).backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.recipe.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        self.meter.count(images)


@contextmanager
def _explain_single_images() -> Iterator[None]:
    """Turn batch norm's error about a single image, which has no batch statistics, into a clear one.

    Raises:
        ConfigError: a forward pass inside the block had a single image; replaces torch's ValueError.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "a forward pass has one image, and batch norm needs the statistics of two or more; give a larger "
            "--batch-size, a smaller grad_accum or more training images"
        ) from error


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Split a batch of tensors and lists into at most `count` micro-batches, sized as by `torch.chunk`."""
    if count == 1:
        return [batch]
    chunks = {name: _chunks(value, count) for name, value in batch.items()}
    return [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=True)]


def _chunks(value: Tensor | list[Any], count: int) -> Any:
    if isinstance(value, Tensor):
        return value.chunk(count)
    size = -(-len(value) // count)
    return [value[start : start + size] for start in range(0, len(value), size)]


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of Python, NumPy and torch with a hash of `numbers`."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from it)
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def check_batch_size(recipe: Recipe, world_size: int) -> None:
    """Check that the batches split evenly over ranks and micro-batches.

    Raises:
        ConfigError: a micro-batch would not be a whole number of images, or not a multiple of
            `recipe.images_per_group`; or a rank's share of an evaluation batch would not be a whole number.
    """
    if recipe.eval_batch_size is not None and recipe.eval_batch_size % world_size:
        raise ConfigError(
            f"recipe.eval_batch_size is {recipe.eval_batch_size}; expected a multiple of the {world_size} "
            "processes"
        )
    passes = world_size * recipe.grad_accum
    if recipe.batch_size % passes:
        raise ConfigError(
            f"recipe.batch_size is {recipe.batch_size}; expected a multiple of {passes} "
            f"({world_size} processes with {recipe.grad_accum} passes each)"
        )
    if recipe.batch_size // passes % recipe.images_per_group:
        raise ConfigError(
            f"recipe.batch_size is {recipe.batch_size}, which is {recipe.batch_size // passes} in each of "
            f"{passes} passes; expected an even number there, because mixup and cutmix mix images in pairs"
        )
