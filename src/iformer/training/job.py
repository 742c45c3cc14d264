"""Settings of a training run, and the job that a task builds from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from iformer.config.preprocessing import Preprocessing
from iformer.config.recipe import Recipe
from iformer.errors import UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.factory import create_model
from iformer.models.weights.resolve import Size, resolve
from iformer.training.distributed import RankContext
from iformer.training.protocol import Task, TrainData, Workload
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import stored_network


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a training run that all tasks share."""

    data_name: str
    """The data as the user named it: a folder, a table, an archive, shards, `elpv` or another name."""
    recipe: Recipe
    recipe_name: str
    folder: Path
    """The run folder."""
    resume: bool = False
    """Continue the run in `folder`, or start a new one if the folder holds none."""
    overwrite: bool = False
    """Remove an earlier run in `folder` before this one starts."""
    classes: tuple[str, ...] | None = None
    """Classifiers: the classes of the data to use, in the order of the outputs. None: all classes."""
    fold: tuple[int, int] | None = None
    """Number of the fold that validates, from 1, and the number of folds. None: the data's own split."""
    data_options: dict[str, Any] = field(default_factory=dict)
    """Options the data was loaded with, for `config.yaml` and provenance, such as `{"val_split": 0.2}`."""
    device: str = "auto"
    """Device name; see `iformer.device.resolve_device`."""
    tensorboard: bool = True
    """Write TensorBoard event files; only used if `trackers` is None."""
    trackers: tuple[str, ...] | None = None
    """Names from `iformer.training.records.trackers.TRACKERS`. None: "tensorboard" if `tensorboard` is set."""
    report: bool = True
    """Write `report.md` and its figures at the end."""

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """Names of the run's trackers, from `trackers` and `tensorboard`."""
        if self.trackers is not None:
            return self.trackers
        return ("tensorboard",) if self.tensorboard else ()

    @property
    def continues(self) -> bool:
        """Whether the run resumes from a saved state, which holds the weights."""
        return self.resume and RunFolder(self.folder).holds_state


def _whole(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True, kw_only=True)
class TrainJob(RunSettings):
    """A training run, ready to start. `train` changes `model` in place.

    The `training` module of each task builds a job, for example `iformer.tasks.classification.training`.
    """

    task: Task
    """Loss and primary metric."""
    workload: Callable[[TrainJob, RankContext], Workload]
    """Function that builds the `Workload` of this rank: batches, evaluation and report."""
    model: nn.Module
    """Any network that the task's loss accepts. `iformer.load` can read only checkpoints of iFormer networks."""
    model_name: str
    data: TrainData
    preprocessing: Preprocessing
    multi_label: bool = False
    """Whether the classifier is multi-label; see `iformer.config.metadata.Metadata`."""
    published: Callable[[nn.Module], nn.Module] = _whole
    """Function that returns the module of `model` that checkpoints hold."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Further plain values that a resumed run must share, such as the hash of a teacher's weights."""


def resumed_network(settings: RunSettings) -> nn.Module | None:
    """Build a resumed run's network from the saved config; None if none is stored. See `stored_network`."""
    return stored_network(RunFolder(settings.folder)) if settings.continues else None


def starting_network(name: str, *, weights: str, entry: str | None = None, **options: Any) -> Backbone:
    """Build the network that a run starts from.

    Args:
        name: a size, or any name of a network with weights; see `iformer.models.weights.resolve`.
        weights: `none`, `pretrained` or the name of a network with weights; see `Recipe.weights`.
        entry: see `Recipe.entry`.
        options: options of `iformer.models.factory.create_model`.

    Raises:
        UserError: `name` and `weights` both name weights.
        WeightsError: the weights cannot be fetched or read, or do not fit the network.
    """
    named = resolve(name, entry=entry if weights in ("none", "pretrained") else None)
    if not isinstance(named, Size) and weights not in ("none", "pretrained"):
        raise UserError(f"{name} and {weights} both name starting weights; give one of --model and --weights")
    if not isinstance(named, Size) or weights == "none":
        return create_model(named, **options)
    if weights != "pretrained":
        return create_model(named, weights=weights, entry=entry, **options)
    try:
        return create_model(named, pretrained=True, **options)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. To train without them, give --weights none for random weights, or --weights FILE"
        ) from None
