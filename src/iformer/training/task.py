"""What a task is to the training loop: a loss, and a metric by name. It knows neither data sets nor loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

Batch = dict[str, Any]
"""`images`, `indices` (int64 B) and the task's targets; each task's `loss` says what its images are."""


class TaskMetric(Protocol):
    """Collects what a network answered and says how right it was; each task's module has one.

    With several processes each one updates with its own share of the images, of any size, none included;
    `compute` joins them and gives the same answer on every process.
    """

    def update(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Add a batch: the network's outputs in eval mode, and the batch with its targets."""

    def compute(self) -> dict[str, Any]:
        """The metrics over everything that was added, on all processes."""


class Task(Protocol):
    """A loss for training and a metric for evaluation."""

    name: str
    """As `Metadata.task` has it: classify, detect or segment."""
    primary_metric: str
    """The metric that picks the best checkpoint: a percentage, higher is better."""
    metric_label: str
    """What that metric is called in a sentence."""
    class_names: tuple[str, ...]

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Run the network in training mode.

        Returns:
            `loss`, a mean over the batch to be minimised, and further scalars (detached, on the same device)
            that the loop averages and logs under their names.
        """
