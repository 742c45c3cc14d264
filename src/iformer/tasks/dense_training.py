"""What the training runs of detection and segmentation share: where they start, and checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from iformer.config.dense_recipe import DenseRecipe
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.errors import DataError
from iformer.models.backbone import Backbone
from iformer.models.weights.dense_checkpoint import DenseNetwork
from iformer.training.job import begins, starting_network


def starting_backbone(
    model: str, recipe: DenseRecipe, folder: str | os.PathLike[str], *, resume: bool
) -> Backbone:
    """The feature maps of a network, with the weights that the recipe names; see `starting_network`.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched, read or do not fit.
    """
    weights = recipe.weights if begins(folder, resume=resume) else "none"
    return starting_network(model, weights=weights, features_only=True, **recipe.network_options)


def normalisation(backbone: Backbone) -> dict[str, Any]:
    """Mean and std that the backbone's weights were trained with, as fields of a dense config."""
    known: Preprocessing = backbone.metadata.preprocessing
    return {"mean": known.mean, "std": known.std}


def job_fields(network: DenseNetwork, recipe: DenseRecipe, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of `TrainJob` that follow from the network; what the recipe freezes is frozen here."""
    network.pyramid.freeze(recipe.freeze)
    return {
        "model": network,
        "recipe": recipe,
        "preprocessing": network.config.preprocessing,
        "folder": Path(folder),
    }


def scaled(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 on any device to float from 0 to 1 on this one."""
    return image.to(device, non_blocking=True).float().div_(255)


def check_classes(metadata: Metadata, class_names: tuple[str, ...]) -> None:
    """Raise `DataError` unless a data set's classes are those that a network was trained on, in their order."""
    known = metadata.class_names
    if known and known != class_names:
        different = [
            f"class {index} is {theirs}, the network's is {ours}"
            for index, (theirs, ours) in enumerate(zip(class_names, known, strict=False))
            if theirs != ours
        ]
        counts = f"{len(class_names)} classes for {len(known)}"
        raise DataError(f"the classes of the data are not those of the network: {(different or [counts])[0]}")
