"""What is to be trained, on what and where: a `TrainJob`, and the network that it starts from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from iformer.config.preprocessing import Preprocessing
from iformer.config.recipe import Recipe
from iformer.config.variants import list_models
from iformer.errors import UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.factory import create_model
from iformer.training.distributed import RankContext
from iformer.training.protocol import TrainData, Workload
from iformer.training.records.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that a training run needs. `train` changes `model` in place.

    Each task has a module beside this one that makes its jobs: `iformer.tasks.classification.training`, ….
    """

    task: Any
    """An `iformer.training.protocol.Task`: loss and metric."""
    workload: Callable[[TrainJob, RankContext], Workload]
    """Batches, evaluation and report of the task."""
    model: nn.Module
    """Any network that the task's loss takes; only ours become checkpoints that `iformer.load` reads."""
    model_name: str
    data: TrainData
    data_name: str
    """As the user named it: `elpv` or a folder."""
    recipe: Recipe
    recipe_name: str
    preprocessing: Preprocessing
    folder: Path
    resume: bool = False
    """Continue the run in `folder`; where there is none yet, begin it."""
    overwrite: bool = False
    """Remove the run that is in `folder`."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Further plain values that a resumed run has to share, such as the hash of a teacher's weights."""
    settings: dict[str, Any]
    """Further plain values for `config.yaml`, such as the share of images that was split off."""
    device: str = "auto"
    """A name that `iformer.device.resolve_device` takes."""
    tensorboard: bool = True
    report: bool = True
    """Write `report.md` and its pictures at the end."""


def begins(folder: str | os.PathLike[str], *, resume: bool) -> bool:
    """Whether a run starts at its first step. What is resumed brings its own weights, so none are fetched."""
    return not (resume and RunFolder(Path(folder)).holds_state)


def starting_network(name: str, *, weights: str, **options: Any) -> Backbone:
    """The network that a run starts from.

    Args:
        name: a network's name, or a checkpoint that says what the network is.
        weights: `none`, `pretrained` or a file; see `Recipe.weights`.
        options: of `iformer.models.factory.create_model`.

    Raises:
        UserError: both name weights.
        WeightsError: the weights cannot be fetched or read, or do not fit.
    """
    if name not in list_models() and weights not in ("none", "pretrained"):
        raise UserError(f"{name} and {weights} both name starting weights; give one of --model and --weights")
    if name not in list_models() or weights == "none":
        return create_model(name, **options)
    if weights != "pretrained":
        return create_model(name, weights=weights, **options)
    try:
        return create_model(name, pretrained=True, **options)
    except WeightsError as error:
        raise WeightsError(
            f"{error} (train: --weights FILE; or --weights none to start from random weights)"
        ) from None
