"""Learning-rate range test (Smith, arXiv 1506.01186): a short run whose learning rate grows at every step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.errors import UserError, counted
from iformer.training.distributed import RankContext
from iformer.training.finite import FiniteGuard
from iformer.training.job import TrainJob
from iformer.training.meter import EpochMeter
from iformer.training.network.precision import resolve_precision
from iformer.training.protocol import Batch, Workload
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState
from iformer.training.step import OptimizerStep, seed_everything

LOWEST, HIGHEST = 1e-6, 1.0
"""Learning rates of the first and the last step. The optimizer applies them as they are, at any batch size."""
STEPS = 100
_SMOOTHING = 0.9
"""Weight of the previous smoothed loss in the exponential moving average."""
_DIVERGED = 3.0
"""The test ends when the smoothed loss exceeds the smallest smoothed loss by this factor."""
_FEWEST = 10
"""Smallest number of finished steps with which a learning rate is suggested."""


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Losses of a range test, and the suggested learning rate."""

    rates: tuple[float, ...]
    """Learning rate of each step."""
    losses: tuple[float, ...]
    """Smoothed training loss of each step."""
    steepest: float
    """Learning rate at which the loss falls fastest: a good peak for a schedule with a warm-up."""
    lr: float
    """Value of the recipe's `lr` that gives this peak: `steepest` scaled from the batch size to `lr_batch`."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def find_lr(job: TrainJob, *, steps: int = STEPS) -> LearningRates:
    """Train a few steps with a learning rate that grows from `LOWEST` to `HIGHEST`; no files are written.

    The weights of the job's network change, so build another job for the run itself.

    Args:
        job: the run to test.
        steps: number of optimizer steps; the test ends earlier if the loss explodes.

    Raises:
        MissingDependencyError: Accelerate is not installed.
        UserError: the loss explodes in the first steps, or the job cannot run.
    """
    require("accelerate", extra="train")
    device = resolve_device(job.device)
    context = RankContext(device=device, precision=resolve_precision(job.recipe.precision, device))
    with closing(job.workload(job, context)) as workload:
        rates, losses = _run(job, context, workload, steps)
    if len(losses) < _FEWEST:
        raise UserError(
            f"the loss explodes after {counted(len(losses), 'step')}, at a learning rate of {rates[-1]:.2g}; "
            "a lower "
            "clip_grad, or precision=fp32 may help"
        )
    steepest = steepest_rate(rates, losses)
    recipe = job.recipe
    return LearningRates(
        rates=tuple(rates),
        losses=tuple(losses),
        steepest=steepest,
        lr=steepest * recipe.lr_batch / recipe.batch_size,
    )


def steepest_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return the rate at which the loss over log(rate) falls most steeply, before the loss reaches its minimum."""
    lowest = max(int(np.argmin(losses)), 2)
    slopes = np.gradient(np.asarray(losses[: lowest + 1]), np.log(rates[: lowest + 1]))
    return float(rates[int(np.argmin(slopes))])


def _run(job: TrainJob, context: RankContext, workload: Workload, steps: int) -> tuple[list[float], list[float]]:
    state = TrainState.create(job.model, job.recipe, context)
    meter, guard = EpochMeter(context), FiniteGuard(RunFolder(job.folder), state, context)
    step = OptimizerStep(state, job.task, job.recipe, context, meter=meter, guard=guard)
    state.model.train()
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for number, batch in enumerate(itertools.islice(_batches(workload), steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (steps - 1))
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        rates.append(rate)
        seed_everything(job.recipe.seed, number, 0)
        meter.start(step=0, sums={})
        try:
            step(workload.prepare(batch))
        except UserError:  # the loss is not finite
            break
        loss = meter.sums()["loss"]
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING ** (number + 1))
        if not math.isfinite(loss) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        losses.append(smoothed)
    return rates[: len(losses)] or rates, losses


def _batches(workload: Workload) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch."""
    loader = workload.train_loader()
    for epoch in itertools.count():
        yield from loader.epoch(epoch, 0)
