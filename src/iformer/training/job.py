"""What is to be trained, on what and where: a `TrainJob`, and how one is made for classification."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from iformer.config.preprocessing import Preprocessing
from iformer.config.recipe import Recipe
from iformer.config.variants import list_models
from iformer.data.samples import DataSplit
from iformer.errors import UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.factory import create_model
from iformer.tasks.classification import Classification
from iformer.training.run_folder import RunFolder

Device = Literal["auto", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that a training run needs. `train` changes `model` in place."""

    task: Classification
    model: nn.Module
    """Any network from float B x 3 x H x W to logits; only ours become checkpoints that `iformer.load` reads."""
    model_name: str
    data: DataSplit
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
    settings: dict[str, Any]
    """Further plain values for `config.yaml`, such as the share of images that was split off."""
    device: Device = "auto"
    """auto: a GPU if there is one."""
    tensorboard: bool = True
    report: bool = True
    """Write `report.md` and its pictures at the end."""


def classification_job(
    data: DataSplit,
    *,
    data_name: str,
    recipe: Recipe,
    recipe_name: str,
    folder: str | os.PathLike[str],
    model: str | nn.Module = "iformer_t",
    model_name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    settings: dict[str, Any] | None = None,
    device: Device = "auto",
    tensorboard: bool = True,
    report: bool = True,
) -> TrainJob:
    """A classification run: the network, with its starting weights and a new head, and the task.

    Args:
        data: training and validation images.
        data_name: as the user named the data.
        recipe: settings; `recipe.weights` says what a named network starts from.
        recipe_name: as the user named the recipe.
        folder: the run folder.
        model: a network's name, a checkpoint whose network and weights are to be fine-tuned, or a network of
            any kind (with as many outputs as there are classes), which is taken as it is.
        model_name: what to call it; by default as `model` says.
        resume, overwrite, settings, device, tensorboard, report: see `TrainJob`.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched, read or do not fit.
    """
    # What is resumed brings its own weights, so they need not be fetched again.
    begins = not (resume and RunFolder(Path(folder)).state.is_file())
    torch.manual_seed(recipe.seed)
    if isinstance(model, nn.Module):
        network = model
        model_name = model_name or type(model).__name__
    else:
        weights = recipe.weights if begins else "none"
        network = _named_network(model, len(data.train.class_names), recipe, weights=weights)
        model_name = model_name or model
    preprocessing = recipe.preprocessing
    if isinstance(network, Backbone):
        known = network.metadata.preprocessing  # what the weights were trained on
        preprocessing = replace(preprocessing, mean=known.mean, std=known.std)
    task = Classification(
        data.train.class_names,
        label_smoothing=recipe.label_smoothing,
        mixup_alpha=recipe.mixup_alpha,
        cutmix_alpha=recipe.cutmix_alpha,
        mixup_prob=recipe.mixup_prob,
        mixup_switch_prob=recipe.mixup_switch_prob,
    )
    return TrainJob(
        task=task,
        model=network,
        model_name=model_name,
        data=data,
        data_name=data_name,
        recipe=recipe,
        recipe_name=recipe_name,
        preprocessing=preprocessing,
        folder=Path(folder),
        resume=resume,
        overwrite=overwrite,
        settings=settings or {},
        device=device,
        tensorboard=tensorboard,
        report=report,
    )


def _named_network(name: str, num_classes: int, recipe: Recipe, *, weights: str) -> Backbone:
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_path_rate": recipe.drop_path_rate,
        "reset_head": True,
    }
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
