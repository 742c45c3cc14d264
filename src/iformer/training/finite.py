"""A run stops at numbers that are not finite, and no such weights take a good checkpoint's place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from iformer.errors import UserError
from iformer.training.network.fsdp import is_finite
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainProgress, last_good_step


class FiniteGuard:
    """Looks at losses and weights; `position` is the run's own and tells it where the run is."""

    def __init__(
        self, files: RunFolder, position: TrainProgress, *, device: torch.device, world_size: int
    ) -> None:
        self._files, self._position = files, position
        self._first_bad_step = torch.full((), math.inf, device=device)
        self._checks_each_step = device.type == "cpu" and world_size == 1

    def check_loss(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite; where looking would wait for the device, remember the step."""
        if self._checks_each_step:
            if not math.isfinite(loss.item()):
                self._stop(self._position.step)
            return
        here = torch.where(loss.detach().isfinite(), math.inf, float(self._position.step))
        self._first_bad_step = torch.minimum(self._first_bad_step, here)

    def check_remembered(self) -> None:
        """Stop where a remembered loss of any process was not finite. All processes have to call it."""
        if self._checks_each_step:
            return
        from accelerate.utils import gather

        first = gather(self._first_bad_step.reshape(1)).min().item()
        if math.isfinite(first):
            self._stop(int(first))

    def check_weights(self, network: nn.Module) -> None:
        """A finite loss can have an infinite gradient: such weights must not take a good checkpoint's place."""
        if not is_finite([parameter.detach() for parameter in network.parameters()]):
            self._stop(self._position.step)

    def _stop(self, step: int) -> None:
        files = self._files
        good, saved = "no checkpoint was saved before it", last_good_step(files)
        if saved is not None:
            good = f"the last good checkpoint is {files.state}, of step {saved}"
            if files.last.is_file():
                good += f", and the last evaluated network is {files.last}"
        raise UserError(
            f"the loss is not finite at step {step} (epoch {self._position.epoch + 1}); {good}; "
            "a lower --lr, clip_grad, or precision=fp32 may help"
        )
