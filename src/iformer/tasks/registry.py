"""The tasks, one row each. A new task is a folder beside this file and a row here. Importing it loads no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from iformer.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task: what it is called, and the folder that implements it."""

    name: str
    """What `--task` takes and what recipes and checkpoints say."""
    package: str
    """The folder below `iformer.tasks`."""
    default_recipe: str
    """The recipe used where none is named."""
    metric: str
    """Key of the headline metric, in percent; larger is better."""
    metric_label: str
    """The headline metric as it is printed."""
    data: str
    """What `--data` may be, for help and error messages."""

    def module(self, name: str) -> ModuleType:
        """A module of the folder: `config`, `dataset`, `loss`, `training`, `evaluate`, `predict` or `report`."""
        return importlib.import_module(f"iformer.tasks.{self.package}.{name}")


TASKS = {
    row.name: row
    for row in (
        TaskRow(
            name="classify",
            package="classification",
            default_recipe="finetune",
            metric="top1",
            metric_label="top-1",
            data="a folder with one sub-folder a class, or elpv",
        ),
        TaskRow(
            name="detect",
            package="detection",
            default_recipe="detection",
            metric="box_ap",
            metric_label="box AP",
            data="a folder with images and COCO annotations",
        ),
        TaskRow(
            name="segment",
            package="segmentation",
            default_recipe="segmentation",
            metric="miou",
            metric_label="mIoU",
            data="a folder with images and masks",
        ),
    )
}


def find_task(name: str) -> TaskRow:
    """The row of a task.

    Raises:
        UnknownNameError: no such task; the message suggests the nearest names.
    """
    if name not in TASKS:
        raise UnknownNameError("task", str(name), TASKS)
    return TASKS[name]
