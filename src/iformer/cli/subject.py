"""Open what `eval` and `predict` are given: a network or an exported artifact, with its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iformer.cli.output import note
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import UserError
from iformer.tasks.registry import TaskRow, find_task


def open_subject(
    name: str, *, device: str, precision: str = "fp32", entry: str | None = None
) -> tuple[Any, TaskRow]:
    """Open a network or an artifact by any name that `iformer.models.weights.resolve` knows.

    Returns:
        A network or a runner in eval mode on the CPU, and the row of its task.

    Raises:
        UserError: it cannot be opened, or is an artifact and `device` or `precision` are for a network.
    """
    from iformer.deploy.artifact import is_artifact, read_record, record_path
    from iformer.models.weights.resolve import Artifact, load, load_classifier, resolve, resolve_weights

    path = Path(name)
    if path.exists() and path.suffix in {row.suffix for row in RUNTIMES.values()} and not is_artifact(path):
        read_record(path)  # raises: an artifact needs its record
    found = resolve(name, entry=entry)
    if isinstance(found, Artifact):
        from iformer.deploy.quiet import quiet
        from iformer.deploy.runner import open_artifact

        if precision != "fp32":
            raise UserError(f"--precision is {precision}; an artifact runs as it was exported, leave it out")
        if device not in ("auto", "cpu"):
            raise UserError(f"--device is '{device}'; an artifact runs on the CPU, in its own runtime")
        with quiet():
            runner = open_artifact(found.path)
        if not runner.info.record_sha256:
            note(f"note: {record_path(found.path)} has no checksum, as in early versions: an edit would not show")
        return runner, find_task(runner.info.task)
    weights = resolve_weights(found)
    network = load_classifier(weights) if weights.task == "classify" else load(weights)
    return network, find_task(weights.task)
