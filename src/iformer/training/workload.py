"""What differs by task in a training run: its batches, its evaluation and its report."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from iformer.data.loader import Loader
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.results import Evaluation, TrainResult
from iformer.training.task import Batch

if TYPE_CHECKING:
    from iformer.training.job import TrainJob


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Where a process of a run works, and which of them it is."""

    device: torch.device
    precision: Precision
    rank: int
    processes: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; see `iformer.training.network.precision.autocast`."""
        return autocast(self.precision, self.device)


class SplitData(Protocol):
    """The images of one part (training or validation) of a data set, as the loop sees them."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""

    def __len__(self) -> int:
        """How many images there are."""

    def fingerprint(self) -> str:
        """A hash of what the images and their targets are; a resumed run has to find the same."""


class TrainData(Protocol):
    """A data set's two parts, and what a user should know about it."""

    @property
    def train(self) -> Any:
        """A `SplitData`."""

    @property
    def val(self) -> Any:
        """A `SplitData`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each: files skipped and why."""


class Workload(Protocol):
    """A run's share of its task. The loop makes one for each run and closes it at the end."""

    def __init__(self, job: TrainJob, place: RankContext) -> None:
        """Nothing is read yet."""

    def train_loader(self) -> Loader:
        """Training batches of this process: dicts with `indices` (int64 B), `images` and the task's targets."""

    def prepare(self, batch: Batch) -> Batch:
        """A batch on the device as the task's loss takes it; what is random here is seeded by the loop."""

    def evaluate(self, network: nn.Module, *, precision: Precision) -> Evaluation:
        """The network, in eval mode, on the validation images. All processes come here and get the same."""

    def write_report(self, result: TrainResult) -> Path:
        """Write `report.md` and its pictures into the run folder."""

    def close(self) -> None:
        """End worker processes."""
