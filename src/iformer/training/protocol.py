"""What training knows of a task: its data, its loss and metric, its batches, its report.

Each folder of `iformer.tasks` implements these protocols; nothing in `iformer.training` imports one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from iformer.data.loader import Loader
from iformer.training.network.precision import Precision
from iformer.training.records.results import Evaluation, TrainResult

Batch = dict[str, Any]
"""`images`, `indices` (int64, B) and the task's targets. The form of `images` depends on the task."""


class SplitData(Protocol):
    """The images of one split with their targets."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, by class index."""

    def __len__(self) -> int:
        """Number of images."""

    def fingerprint(self) -> str:
        """Hash of the images and their targets. A run resumes only on data with the same fingerprint."""


class TrainData(Protocol):
    """The two splits of a data set."""

    @property
    def train(self) -> Any:
        """Training images, a `SplitData`."""

    @property
    def val(self) -> Any:
        """Validation images, a `SplitData`."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line per warning, such as the files that were skipped and why."""


class Task(Protocol):
    """A loss, and the name of the metric that ranks checkpoints."""

    name: str
    """`classify`, `detect` or `segment`, as in `Metadata.task`."""
    primary_metric: str
    """Key of the metric that selects the best checkpoint, in percent; higher is better."""
    metric_label: str
    """The primary metric as it is printed."""
    class_names: tuple[str, ...]

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Run the network in train mode.

        Returns:
            `loss`, the mean over the batch, and further detached scalars on the same device. The loop logs the
            average of each under its name.
        """


class TaskMetric(Protocol):
    """Accumulates predictions and computes metrics from them.

    Each rank updates with its own images, of any number, including none.
    """

    def update(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Add the outputs of a network in eval mode for a batch with targets."""

    def compute(self) -> dict[str, Any]:
        """Metrics over the images of all ranks, the same on every rank. Every rank must call it."""


class Workload(Protocol):
    """Batches, evaluation and report of one run. The loop closes it at the end."""

    def train_loader(self) -> Loader:
        """Loader of this rank's training batches."""

    def prepare(self, batch: Batch) -> Batch:
        """Move a batch to the device in the form that `Task.loss` expects. The loop seeds what is random here."""

    def evaluate(self, network: nn.Module, *, precision: Precision) -> Evaluation:
        """Evaluate a network in eval mode on the validation split. Every rank must call it; all get the same."""

    def write_report(self, result: TrainResult) -> Path:
        """Write `report.md` and its figures into the run folder; return its path."""

    def close(self) -> None:
        """Stop the loader workers."""
