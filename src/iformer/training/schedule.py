"""The learning rate of every optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from iformer.config.recipe import Recipe

if TYPE_CHECKING:
    from timm.scheduler.cosine_lr import CosineLRScheduler


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then one half cosine down to `min_lr` over the rest of the run.

    `schedule.step_update(step)` sets the learning rate of the step with that number, counted from 0, and
    depends on nothing else, so a resumed run needs no state of it.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler

    steps = recipe.epochs * steps_per_epoch
    warmup_steps = min(round(recipe.warmup_epochs * steps_per_epoch), steps // 2)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup_steps,
        lr_min=recipe.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=recipe.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
