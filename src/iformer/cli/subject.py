"""Open what `eval` and `predict` are given: a network or an exported artifact, with its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iformer.errors import UserError
from iformer.tasks.registry import TaskRow, find_task


def open_subject(name: str, *, device: str, precision: str = "fp32") -> tuple[Any, TaskRow]:
    """Open a checkpoint file, an artifact, or a shipped or released network by name.

    Returns:
        A network or a runner in eval mode on the CPU, and the row of its task.

    Raises:
        UserError: it cannot be opened, or is an artifact and `device` or `precision` are for a network.
    """
    from iformer.deploy.artifact import is_artifact
    from iformer.models.weights.dense_checkpoint import is_dense_checkpoint, load_dense
    from iformer.models.weights.resolve import open_network

    if is_artifact(name):
        from iformer.deploy.quiet import quiet
        from iformer.deploy.runner import open_artifact

        if precision != "fp32":
            raise UserError(f"--precision is {precision}; an artifact runs as it was exported, leave it out")
        if device not in ("auto", "cpu"):
            raise UserError(f"--device is '{device}'; an artifact runs on the CPU, in its own runtime")
        with quiet():
            runner = open_artifact(Path(name))
        return runner, find_task(runner.info.task)
    if Path(name).is_file() and is_dense_checkpoint(name):
        network: Any = load_dense(name)
    else:
        network = open_network(name)
    return network, find_task(network.metadata.task)
