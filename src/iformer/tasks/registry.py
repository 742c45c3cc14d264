"""The tasks, one row each: the only module that names them all. Importing it loads no torch.

A new task is a folder beside this file and a row here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from iformer.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task: its names, and the folder that implements it."""

    name: str
    """The value of `--task`, and of `task` in recipes and checkpoints."""
    package: str
    """The folder below `iformer.tasks`."""
    default_recipe: str
    """Name of the recipe that is used if none is given."""
    metric: str
    """Key of the headline metric, in percent; larger is better."""
    metric_label: str
    """The headline metric as it is printed."""
    networks: str
    """What networks of the task are called, in the plural."""
    data: str
    """What `--data` may be, for help and error messages."""

    def module(self, name: str) -> ModuleType:
        """Import a module of the folder.

        Args:
            name: `config`, `dataset`, `loss`, `metric`, `training`, `evaluate`, `predict` or `report`.
        """
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
            networks="classifiers",
            data="a folder with one sub-folder a class, or elpv",
        ),
        TaskRow(
            name="detect",
            package="detection",
            default_recipe="detection",
            metric="box_ap",
            metric_label="box AP",
            networks="detectors",
            data="a folder with images and COCO annotations",
        ),
        TaskRow(
            name="segment",
            package="segmentation",
            default_recipe="segmentation",
            metric="miou",
            metric_label="mIoU",
            networks="segmenters",
            data="a folder with images and masks",
        ),
    )
}


def find_task(name: str) -> TaskRow:
    """Return the row of a task.

    Raises:
        UnknownNameError: there is no such task; the message suggests the nearest names.
    """
    if name not in TASKS:
        raise UnknownNameError("task", str(name), TASKS)
    return TASKS[name]
