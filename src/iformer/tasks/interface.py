"""Interface that the package of each task implements for `train`, `eval` and `predict`.

Each task has a module `training` with `load_job`, a module `evaluate` with `evaluate_data` and a module `predict`
with `open_predictor`. Pretraining has only `training`. `evaluate` and `predict` each list the options that they
read in `TAKES`.
`iformer.tasks.registry.TaskRow.module` imports these modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from iformer.data.video.live import LiveSource
from iformer.errors import UserError
from iformer.training.job import RunSettings, TrainJob
from iformer.training.network.precision import Precision
from iformer.training.records.results import Evaluation

Split = Literal["val", "train", "all"]

Warn = Callable[[Sequence[str]], None]
"""Callback for warnings about the data, one line each."""

Record = dict[str, Any]
"""The answer for one image or video frame as plain values: `file`, and either `error` or the task's own keys."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of the verb `eval`. None: the option was not given, and the task decides."""

    device: torch.device
    split: Split | None = None
    precision: Precision = "fp32"
    workers: int | None = None
    strict: bool = False
    """Whether an unreadable image is an error instead of being skipped."""
    val_split: float | None = None
    batch_size: int | None = None
    sliding: bool | None = None
    max_detections: int | None = None
    """Largest number of detections of an image."""
    iou: float | None = None
    """Overlap above which a detector drops the box with the lower score."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of the verb `predict`. None: the option was not given, and the task decides."""

    device: torch.device
    title: str = ""
    """Name of the network in pictures."""
    top_k: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    explain: bool | None = None
    flip: bool | None = None
    min_score: float | None = None
    sliding: bool | None = None
    max_detections: int | None = None
    """Largest number of detections of an image."""
    iou: float | None = None
    """Overlap above which a detector drops the box with the lower score."""
    tile: int | None = None
    """Side, in pixels, of the square tiles into which large images are cut."""
    overlap: float | None = None
    """Smallest overlap of neighbouring tiles, as a share of their side."""
    track: bool | None = None
    """Follow the objects of a video from frame to frame."""
    max_frames: int | None = None
    """Number of frames after which a video, camera or stream ends."""


class TrainModule(Protocol):
    """A task's module `training`."""

    def load_job(
        self, settings: RunSettings, model: str, *, val_split: float | None, strict: bool, warn: Warn
    ) -> TrainJob:
        """Load the data that `settings` names and build the run.

        Args:
            model: a model name, or a checkpoint to fine-tune.
            val_split: share of the images for validation, if the data is not split. None: the default.
            strict: an unreadable image is an error instead of being skipped.
            warn: called with warnings about the data, one line each.

        Raises:
            UserError: the data or the weights cannot be used, or the task does not take an option.
        """


class EvaluateModule(Protocol):
    """A task's module `evaluate`."""

    TAKES: Collection[str]

    def evaluate_data(self, subject: Any, data: str, options: EvaluateOptions) -> tuple[Evaluation, Sequence[str]]:
        """Evaluate a network or an artifact of the task on the data set that `data` names.

        Returns:
            The evaluation, and notes for its reader, one line each.

        Raises:
            UserError: the data cannot be read, or does not fit the network.
        """


def no_warnings(lines: Sequence[str]) -> None:
    """Ignore the lines: the `Warn` of a caller that wants none."""


class TaskPredictor(ABC):
    """Base class: a network or an artifact that answers for images. By default it has no files and no masks."""

    name: str
    """Name of the network, for messages."""
    device: torch.device
    dropped = 0
    """Frames of a camera or stream that were not answered because newer ones arrived."""
    warn: Warn = staticmethod(no_warnings)
    """Called with notes about the inputs, one line each."""

    @abstractmethod
    def predict(self, paths: Sequence[Path], out: Path | None = None) -> Generator[Record]:
        """Yield a record for each image and each frame of a video, in order; may write pictures to `out`.

        A file that cannot be read yields a record with an `error`.
        """

    def predict_live(self, source: LiveSource, out: Path | None = None) -> Generator[Record]:
        """Yield a record for each frame of a camera or stream; may draw `NAME.mp4` with `source.stem` as its name.

        The generator ends with the stream or by `close`. A source that fails yields a record with an `error`.
        """
        raise UserError(f"{source.name}: these networks do not take cameras and streams; give files")

    @abstractmethod
    def words(self, record: Record) -> str:
        """Return the answer of a record without an `error` as one line of text."""

    def masks(self) -> Callable[[], Any]:
        """Return a picklable function that computes the masks of the latest record: a NumPy array, or None."""
        return no_masks

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths, relative to `out`, of all files that `predict` and `finish` may write."""
        return []

    def finish(self, out: Path) -> list[str]:
        """Write the files that belong to all images together, and return lines that say what was written."""
        return []


def no_masks() -> None:
    """Return None. `TaskPredictor.masks` returns this function if there are no masks."""


class PredictModule(Protocol):
    """A task's module `predict`."""

    TAKES: Collection[str]
    VIDEOS: bool
    """Whether the predictors of the task read videos, cameras and streams."""

    def open_predictor(self, subject: Any, options: PredictOptions) -> TaskPredictor:
        """Return a predictor of a network or an artifact of the task.

        Raises:
            UserError: an option has an invalid value, or does not fit the network or the artifact.
        """


def check_options(options: EvaluateOptions | PredictOptions, takes: Collection[str], what: str) -> None:
    """Check that the task reads every option that was given.

    Args:
        takes: names of the options that the task reads, of those that are None by default.
        what: the networks of the task, such as "classifiers".

    Raises:
        UserError: an option was given that has no effect here; the message names it.
    """
    for field in fields(options):
        if field.default is None and getattr(options, field.name) is not None and field.name not in takes:
            raise UserError(f"--{field.name.replace('_', '-')} is not for {what}; leave it out")
