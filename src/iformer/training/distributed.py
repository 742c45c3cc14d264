"""The ranks of a run: where each one computes, and how they exchange Python objects."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from iformer.training.network.precision import Precision, autocast


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Device, precision and rank of one process."""

    device: torch.device
    precision: Precision
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass; see `iformer.training.network.precision.autocast`."""
        return autocast(self.precision, self.device)


def all_gather(value: Any) -> list[Any]:
    """Gather a picklable value of any size from every rank, in rank order. Every rank must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
