"""What the training runs of detection and segmentation share: where they start, and checks."""

from __future__ import annotations

from typing import Any

import torch

from iformer.config.dense_recipe import DenseRecipe
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.errors import DataError
from iformer.models.backbone import Backbone
from iformer.training.job import RunSettings, starting_network


def starting_backbone(model: str, recipe: DenseRecipe, settings: RunSettings) -> Backbone:
    """Build the feature extractor with the weights that the recipe names; see `starting_network`.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched, read or do not fit.
    """
    weights = "none" if settings.continues else recipe.weights
    return starting_network(model, weights=weights, features_only=True, **recipe.network_options)


def normalisation(backbone: Backbone) -> dict[str, Any]:
    """Mean and std that the backbone's weights were trained with, as fields of a dense config."""
    known: Preprocessing = backbone.metadata.preprocessing
    return {"mean": known.mean, "std": known.std}


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
