"""Checks that stop a run whose loss or weights are not finite, before a good checkpoint is overwritten."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iformer.errors import UserError
from iformer.training.distributed import RankContext
from iformer.training.network.fsdp import is_finite
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState, last_good_step


class FiniteGuard:
    """Guard that stops a run if a loss or a weight is not a finite number.

    Reading a loss from a GPU makes the CPU wait, so only a single process on the CPU checks each loss at once.
    Otherwise the number of the first bad step is kept on the device and checked before each save and log record.
    """

    def __init__(self, files: RunFolder, state: TrainState, context: RankContext) -> None:
        self._files, self._state = files, state
        self._immediate = context.device.type == "cpu" and context.world_size == 1
        self._first_bad_step = torch.full((), math.inf, device=context.device)

    def check_loss(self, loss: Tensor) -> None:
        """Check one loss at once, or remember its step for `check_remembered` if it is not finite.

        Raises:
            UserError: the loss is not finite, in a single process on the CPU.
        """
        step = self._state.progress.step
        if self._immediate:
            if not math.isfinite(loss.item()):
                self._stop(step)
            return
        bad_step = torch.where(loss.detach().isfinite(), math.inf, float(step))
        self._first_bad_step = torch.minimum(self._first_bad_step, bad_step)

    def check_remembered(self) -> None:
        """Check the losses that `check_loss` has seen on all ranks. Every rank must call it.

        Raises:
            UserError: a loss was not finite.
        """
        if self._immediate:
            return
        from accelerate.utils import gather

        first = gather(self._first_bad_step.reshape(1)).min().item()
        if math.isfinite(first):
            self._stop(int(first))

    def check_weights(self) -> None:
        """Check the weights, because a finite loss can have an infinite gradient.

        Raises:
            UserError: a weight is not finite.
        """
        if not is_finite([parameter.detach() for parameter in self._state.model.parameters()]):
            self._stop(self._state.progress.step)

    def _stop(self, step: int) -> None:
        files = self._files
        good, saved = "no checkpoint was saved before it", last_good_step(files)
        if saved is not None:
            good = f"the last good checkpoint is {files.state}, of step {saved}"
            if files.last.is_file():
                good += f", and the last evaluated network is {files.last}"
        raise UserError(
            f"the loss is not finite at step {step} (epoch {self._state.progress.epoch + 1}); {good}; "
            "a lower --lr, clip_grad, or precision=fp32 may help; with --teacher, check its outputs"
        )
