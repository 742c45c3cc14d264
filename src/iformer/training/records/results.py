"""Results of training and evaluation, for reports, the command line and metrics.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from iformer.config.metadata import Metadata
from iformer.config.recipe import Recipe
from iformer.errors import counted
from iformer.training.records.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """Metrics of a network on a set of images. Each task has a subclass with its own metrics."""

    metrics: dict[str, Any]
    """Metrics by name: the number of `images`, the task's metrics (shares in percent) and `per_class`."""

    split: str = "val"
    """Name of the evaluated images: `val`, `train` or `all`."""

    columns: ClassVar[Mapping[str, str]] = {}
    """Keys of `per_class` that tables show, each with its column heading."""

    @property
    def summary(self) -> dict[str, float]:
        """The metrics that are single numbers, such as top1, loss and images."""
        return {name: value for name, value in self.metrics.items() if isinstance(value, int | float)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline}, split {self.split})"

    @property
    def headline(self) -> str:
        """The summary as one line of text, with the metrics in percent."""
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f} %" for name, value in self.summary.items() if name != "images"
        )
        return f"{values} on {counted(self.metrics['images'], 'image')}"

    def class_rows(self) -> list[list[str]]:
        """Return one row per class: the class name and the numbers of `columns`, as text."""
        return [
            [name, *(_cell(scores[column]) for column in self.columns)]
            for name, scores in self.metrics["per_class"].items()
        ]

    def files(self) -> dict[str, str]:
        """Return further result files, such as the predictions, as `{name: contents}`."""
        return {}


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainResult(os.PathLike[str]):
    """A finished training run. As an `os.PathLike`, it is accepted in place of its run folder (`iformer.load`)."""

    folder: Path
    """The run folder; see `iformer.training.records.run_folder` for the files in it."""
    model_name: str
    data_name: str
    """The data as the user named it: a folder, a table, an archive, shards, `elpv` or another name."""
    recipe: Recipe
    recipe_name: str
    parameters: int
    """Number of parameters of the network as trained."""
    train_images: int
    evaluation: Evaluation
    """Evaluation of the last (EMA) weights on the validation split, in fp32: the published metrics."""
    best: dict[str, Any]
    """`epoch`, `step`, metrics and their `precision` of the checkpoint `best`. The metrics are optimistic, because
    the checkpoint was selected on the same validation split."""
    history: list[dict[str, Any]]
    """One record per epoch: `epoch` (from 1), `step`, `seconds` (so far), `lr`, `size` (of images, in
    pixels), `train_loss`, `train_accuracy` (percent, on augmented and mixed images), `images_per_second`,
    `data_wait` (share of the time spent waiting for images, 0 to 1) and, if the epoch was evaluated, each metric
    that is one number: `val_loss`, `val_top1`, `val_top5`, …."""
    seconds: float
    """Seconds spent training and evaluating, without the time between a stop and the next `--resume`."""
    precision: str
    """`fp32`, `bf16` or `fp16`."""
    device: str
    """Description of the device, such as `CPU (AMD EPYC …, 2 threads)`."""
    processes: int
    metadata: Metadata
    """Metadata of `last.safetensors`: class names, preprocessing, metrics, provenance."""
    warnings: list[str] = field(default_factory=list)
    """One line per warning, such as an image that was skipped."""
    report: Path | None = None
    """Path of `report.md`; None if no report was written."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of `evaluation`."""
        return self.evaluation.metrics

    @property
    def paths(self) -> RunFolder:
        """The files of the run: `paths.last`, `paths.best`, `paths.report`, `paths.metrics`, `paths.log`, ..."""
        return RunFolder(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"TrainResult({self.model_name} on {self.data_name}: {self.evaluation.headline}; {self.folder})"


def _cell(value: float | None) -> str:
    """Return a table cell: a count, a percentage with one decimal, or "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
