"""Length of a run in steps and epochs, and the learning rate of each step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iformer.config.recipe import Recipe
from iformer.errors import UserError, counted, listed

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler

    from iformer.training.state import TrainProgress


class RunLength:
    """Number of epochs and steps: `recipe.epochs` whole epochs, or `recipe.max_steps` if that is less."""

    def __init__(self, recipe: Recipe, *, steps_per_epoch: int) -> None:
        """Compute the length from the recipe; `steps_per_epoch` is a number of optimizer steps."""
        self.steps_per_epoch = steps_per_epoch
        whole = recipe.epochs * steps_per_epoch
        self.steps = whole if recipe.max_steps is None else min(whole, recipe.max_steps)
        """Optimizer steps of the whole run."""
        self.epochs = -(-self.steps // steps_per_epoch)
        """Number of epochs; the last one may be shorter."""

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps in `epoch`, where epochs are counted from 0."""
        return min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)

    def check_position(self, epoch: int, step_in_epoch: int, *, source: Path) -> None:
        """Check that the position of a saved state exists in a run of this length.

        Raises:
            UserError: the position is beyond the end of the run or of its epoch.
        """
        within = 0 <= epoch < self.epochs and 0 <= step_in_epoch <= self.steps_in(epoch)
        if not within and (epoch, step_in_epoch) != (self.epochs, 0):
            raise UserError(
                f"{source} is at epoch {epoch}, step {step_in_epoch} of it, but the run has "
                f"{counted(self.epochs, 'epoch')} "
                f"of {counted(self.steps_per_epoch, 'step')}: the state is damaged or of another run; "
                "--overwrite restarts"
            )


def stops_early(progress: TrainProgress, recipe: Recipe) -> bool:
    """Return whether a run ends here because no evaluation in `recipe.patience` epochs was the best so far."""
    if recipe.patience is None or not progress.best or progress.epoch % recipe.eval_every:
        return False
    counted_from: int = max(progress.best["epoch"], progress.patience_from)
    return progress.epoch - counted_from >= recipe.patience


def recipe_hints(recipe: Recipe, length: RunLength) -> list[str]:
    """Return lines about settings that have no effect in a run of this length.

    They are milestones that the run does not reach, and a patience that cannot stop it or that one evaluation
    ends.
    """
    hints = []
    epochs = counted(length.epochs, "epoch")
    if unreached := [str(epoch) for epoch in recipe.milestones if epoch >= length.epochs]:
        hints.append(
            f"the run has {epochs}, so the learning rate does not fall at the milestones {listed(unreached)}; "
            "give earlier milestones, or more epochs"
        )
    patience, every = recipe.patience, recipe.eval_every
    if patience is None:
        return hints
    earliest = every + every * -(-patience // every)  # the first evaluation is the best so far
    if earliest >= length.epochs:
        hints.append(
            f"patience is {patience} and eval_every {every}: an early stop is possible from epoch {earliest} on, "
            f"and the run has {epochs}; give a smaller patience, or more epochs"
        )
    elif every > patience:
        hints.append(
            f"patience is {patience}, but only every {every} epochs are evaluated (eval_every): the run stops at "
            "the first evaluation that is not better; give a smaller eval_every, or a larger patience"
        )
    return hints


def describe_end(progress: TrainProgress, recipe: Recipe, length: RunLength, *, metric: str) -> str:
    """Return a line that says why a run has no epoch left to train, and how to train further.

    Args:
        metric: printed name of the primary metric.
    """
    if progress.epoch >= length.epochs:
        limit = "--set max_steps" if length.steps == recipe.max_steps else "--epochs"
        done = f"all {length.epochs} epochs are" if length.epochs > 1 else "the 1 epoch is"
        return f"nothing to train: {done} done; --resume with a larger {limit} continues"
    since = f" since epoch {progress.patience_from}" if progress.patience_from else ""
    return (
        f"stopped after epoch {progress.epoch}: {metric} was best in epoch {progress.best['epoch']}, and patience "
        f"is {recipe.patience}{since}; --resume with a larger --patience or --epochs continues"
    )


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, length: RunLength) -> Scheduler:
    """Build the learning-rate schedule: linear warm-up, then `recipe.schedule`.

    `schedule.step_update(step)` sets the learning rate of step `step`, counted from 0. The rate depends on nothing
    else, so the schedule has no state to save.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.multistep_lr import MultiStepLRScheduler
    from timm.scheduler.poly_lr import PolyLRScheduler

    warmup_steps = recipe.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(recipe.warmup_epochs * length.steps_per_epoch)
    warmup_steps = min(warmup_steps, length.steps // 2)
    warmup: dict[str, Any] = {"warmup_t": warmup_steps, "warmup_lr_init": recipe.warmup_lr, "t_in_epochs": False}
    if recipe.schedule == "step":
        # timm decays one step before a milestone
        milestones = [epoch * length.steps_per_epoch + 1 for epoch in recipe.milestones]
        return MultiStepLRScheduler(
            optimizer, decay_t=milestones, decay_rate=recipe.step_decay, warmup_prefix=False, **warmup
        )
    if recipe.schedule == "poly":
        return PolyLRScheduler(
            optimizer,
            t_initial=length.steps,
            power=recipe.poly_power,
            lr_min=recipe.min_lr,
            warmup_prefix=False,
            **warmup,
        )
    return CosineLRScheduler(
        optimizer,
        # timm warns of 1, although the rate of its only step is the same
        t_initial=max(2, length.steps - warmup_steps),
        lr_min=recipe.min_lr,
        warmup_prefix=True,
        **warmup,
    )
