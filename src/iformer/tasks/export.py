"""Prepare networks of any task for export."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from iformer.deploy.exportable import Exportable
from iformer.errors import UserError
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
