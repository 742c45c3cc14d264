"""Protocols between training and the tasks: data, loss and metric, batches, report.

Each folder of `iformer.tasks` implements these classes; nothing in `iformer.training` imports a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from iformer.config.recipe import Recipe
from iformer.data.loader import BatchSource, Loader, build_loader
from iformer.training.distributed import RankContext
from iformer.training.network.graphs import uses_cuda_graphs
from iformer.training.network.precision import Precision
from iformer.training.records.results import Evaluation, TrainResult

Batch = dict[str, Any]
"""A batch: `images`, `indices` (int64, B) and the task's targets. The type of `images` depends on the task."""


class SplitData(Protocol):
    """Images of one split, with their targets."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, by class index."""

    def __len__(self) -> int:
        """Number of images."""

    def fingerprint(self) -> str:
        """Hash that identifies the images and their targets; the contents of image files need not be read.

        A run resumes only on data with the same fingerprint.
        """


class TrainData(Protocol):
    """A data set with a training and a validation split."""

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
    """Loss of a task, and the metric that ranks checkpoints."""

    name: str
    """Key of `iformer.tasks.registry.TASKS`, as in `Metadata.task`."""
    primary_metric: str
    """Key of the metric that selects the best checkpoint, in percent; higher is better."""
    metric_label: str
    """Printed name of the primary metric, such as "top-1"."""
    class_names: tuple[str, ...]

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Run the network in train mode and return the loss.

        Returns:
            `loss`, the mean over the batch, and optional detached scalars on the same device. The loop logs the
            average of each scalar under its name.
        """


class Workload(ABC):
    """Data sets, batches, evaluation and report of one run. Each task has its own subclass."""

    def __init__(self, recipe: Recipe, context: RankContext) -> None:
        """Store the recipe and the rank context. No image is read before the first batch."""
        self._recipe, self.context = recipe, context
        self._val_loader: Loader | None = None
        self._loaders: list[Loader] = []

    @abstractmethod
    def train_dataset(self) -> BatchSource:
        """Return the augmented training images."""

    @abstractmethod
    def val_dataset(self) -> BatchSource:
        """Return the validation images."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Batch:
        """Return a batch on the device, augmented as `Task.loss` expects. The caller has seeded all generators."""

    @abstractmethod
    def evaluate(self, network: nn.Module, *, precision: Precision) -> Evaluation:
        """Evaluate a network in eval mode on `val_loader`. Every rank must call it and gets the same result."""

    finishes = False
    """Whether `finish` changes the network."""

    def finish(self, network: nn.Module, evaluation: Evaluation) -> Evaluation:
        """Change a trained network after its last evaluation, in place, and return the evaluation of the result.

        Every rank must call it.
        """
        return evaluation

    def draw_predictions(self, network: nn.Module, evaluation: Evaluation) -> Image.Image | None:
        """Draw predictions next to the ground truth for a few validation images; None if the task draws none.

        Trackers log the picture. Only the main rank calls it, directly after the evaluation of this network.
        """
        return None

    @abstractmethod
    def write_report(self, result: TrainResult) -> Path:
        """Write `report.md` and its figures into the run folder; return its path."""

    def train_loader(self) -> Loader:
        """Return a loader of this rank's training batches."""
        weights = self.train_weights()
        return self._loader(self.train_dataset(), self._recipe.batch_size, train=True, weights=weights)

    def train_weights(self) -> Sequence[float] | None:
        """Return the sampling weight of each training image. None: each image is used once per epoch."""
        return None

    def val_loader(self) -> Loader:
        """Return the loader of this rank's validation images. The same loader is returned until `close`."""
        if self._val_loader is None:
            batch_size = self._recipe.eval_batch_size or self._recipe.batch_size
            self._val_loader = self._loader(self.val_dataset(), batch_size, train=False)
        return self._val_loader

    def close(self) -> None:
        """Stop the workers of all loaders."""
        for loader in self._loaders:
            loader.close()

    def _loader(
        self, dataset: BatchSource, batch_size: int, *, train: bool, weights: Sequence[float] | None = None
    ) -> Loader:
        recipe, context = self._recipe, self.context
        loader = build_loader(
            dataset,
            batch_size=batch_size,
            train=train,
            seed=recipe.seed,
            workers=None if recipe.workers == "auto" else recipe.workers,
            rank=context.rank,
            world_size=context.world_size,
            # the thread that pins memory must not call CUDA while a graph is captured
            pin_memory=context.device.type == "cuda" and not uses_cuda_graphs(recipe, context),
            weights=weights,
        )
        self._loaders.append(loader)
        return loader
