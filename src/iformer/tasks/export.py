"""Prepare networks of any task for export."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

from iformer.data.detection import DetectionSet
from iformer.data.segmentation import SemanticSet
from iformer.deploy.exportable import Exportable
from iformer.errors import DataError, UserError
from iformer.tasks.registry import find_task


def exportable(model: Any) -> Exportable:
    """Prepare a network in eval mode for `iformer.deploy.export.export_artifact`.

    Raises:
        UserError: networks of this task cannot be exported, or this network cannot.
    """
    network: Exportable = export_module(model.metadata.task).exportable(model)
    return network


def export_module(task: str) -> ModuleType:
    """Return a task's module `export`, which has the functions `exportable` and `quantization`.

    Raises:
        UserError: networks of this task cannot be exported.
    """
    row = find_task(task)
    try:
        return row.module("export")
    except ModuleNotFoundError as error:
        if error.name != f"iformer.tasks.{row.package}.export":
            raise
        raise UserError(f"{row.networks} cannot be exported: the task has no module `export`") from None


def calibration_images(
    train: DetectionSet | SemanticSet, val: DetectionSet | SemanticSet, data: str, *, count: int
) -> list[Path]:
    """Return at most `count` training images for INT8 calibration; each call chooses the same ones.

    Raises:
        DataError: a split of `data` has no images.
    """
    for split in (train, val):
        if not len(split):
            raise DataError(f"{data}: no images in {split.name}; INT8 needs images to calibrate and to validate")
    samples = train.samples
    return [
        samples[index].path for index in random.Random(0).sample(range(len(samples)), min(count, len(samples)))
    ]


def check_side(size: tuple[int, int], multiple: int) -> None:
    """Check the height and width of an artifact's input.

    Raises:
        UserError: a side is not a multiple of `multiple`.
    """
    if any(side % multiple for side in size):
        raise UserError(f"size is {size[0]} x {size[1]}; the network takes sides that are multiples of {multiple}")
