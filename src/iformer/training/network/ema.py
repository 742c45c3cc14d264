"""The running average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a network's parameters and buffers, running statistics included.

    `module` is the averaged network, in eval mode. The average depends on the weights and the step numbers it
    was given and on nothing else, so the averaged tensors are its whole state.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        # Collected once: walking the modules at every step would cost more than the average itself.
        self._averages = [average for average, _ in pairs if average.is_floating_point()]
        self._values = [value for average, value in pairs if average.is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    def decay_at(self, step: int) -> float:
        """The decay after optimizer step number `step`, from 1: warmed up so that a random start is forgotten.

        The warm-up is 1 - (1 + step)^(-2/3), as in timm and its source (K. Crowson).
        """
        warmed_up: float = 1.0 - (1.0 + step) ** (-2.0 / 3.0)
        return min(self.decay, warmed_up)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step number `step` (from 1) into the average."""
        torch._foreach_lerp_(self._averages, self._values, 1.0 - self.decay_at(step))
        for average, value in self._counters:
            average.copy_(value)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
