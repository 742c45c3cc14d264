"""Open a network or an exported artifact, with its task, for evaluation and prediction."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.device import resolve_device
from iformer.errors import UserError, listed
from iformer.tasks.registry import TaskRow, find_task

if TYPE_CHECKING:
    from iformer.models.weights.checkpoint import Weights


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network or an artifact, with its task and device."""

    model: Any
    """A network in eval mode, or an `iformer.deploy.runner.ArtifactRunner`."""
    row: TaskRow
    device: torch.device
    title: str
    """Name of the subject in pictures and messages."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""

    def in_eval_mode(self) -> Subject:
        """Return the subject with its network in eval mode; a network in training mode is copied first.

        The given network is not changed, so its training can go on while answers are computed.
        """
        if isinstance(self.model, nn.Module) and self.model.training:
            return replace(self, model=_copy(self.model).eval())
        return self


def require_network(module: nn.Module) -> Any:
    """Return the network of this package that `module` is, or that wrappers of torch hold; see `unwrapped`.

    Raises:
        UserError: `module` is not a network of this package, is on the meta device, or is quantized.
    """
    from iformer.models.weights.checkpoint import require_weights, unwrapped
    from iformer.models.weights.header import row_of

    module = unwrapped(module)
    if row_of(getattr(module, "config", None)) is None:
        raise UserError(f"{type(module).__name__} is not a network of this package; give one, or a name")
    require_weights(module)
    return module


def in_fp32(network: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a network and no notes; of a network in another precision, a copy in fp32 and a note about it.

    Half precision on the CPU is slow, and many operations lack it; "bf16" and "fp16" of an evaluation or an export
    need fp32 weights.
    """
    numbers = (*network.parameters(), *network.buffers())
    others = sorted({str(x.dtype) for x in numbers if x.is_floating_point() and x.dtype != torch.float32})
    if not others:
        return network, ()
    names = " and ".join(name.removeprefix("torch.") for name in others)
    return _copy(network).float(), (f"the network has weights in {names}; a copy in fp32 is used",)


def _copy(network: Any) -> Any:
    # torch copies no computed tensor, such as a weight of pruning, which is computed again in each call
    tensors = (x for module in network.modules() for x in vars(module).values() if isinstance(x, torch.Tensor))
    computed = {id(x): x.detach().clone() for x in tensors if not x.is_leaf}
    return copy.deepcopy(network, computed)


def open_subject(
    subject: str | os.PathLike[str] | nn.Module | Any,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    entry: str | None = None,
) -> Subject:
    """Open a network or an artifact.

    Args:
        subject: any name that `iformer.models.weights.resolve` knows, a network of this package, or an open
            artifact. A network is used as it is, without wrappers of torch, or in a copy if it is not in fp32.
        device: where a network runs; "auto" leaves a network that is given where it is. Artifacts run on the CPU.
        precision: precision of a network's calls; must be "fp32" for an artifact, which runs as it was exported.
        entry: which state dict of a training script's file to take.

    Raises:
        UserError: `subject` cannot be opened, or is an artifact, which cannot have this `device` or `precision`.
    """
    from iformer.deploy.artifact import is_artifact, read_record, record_path
    from iformer.deploy.runner import ArtifactRunner, open_artifact
    from iformer.models.classifier import Classifier
    from iformer.models.weights.resolve import (
        Artifact,
        load,
        load_classifier,
        require_name,
        resolve,
        resolve_weights,
    )

    if isinstance(subject, nn.Module):
        if entry is not None:
            raise UserError("entry is for names; give it to iformer.load")
        network, converted = in_fp32(require_network(subject))
        used = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        on = used if device == "auto" else resolve_device(device)
        task = network.metadata.task
        if task == "classify" and not (isinstance(network, Classifier) and network.num_classes):
            raise UserError(
                f"the {type(network).__name__} {network_name(network)} has no classes; give a classifier"
            )
        title = network_name(network)
        return Subject(model=network, row=find_task(task), device=on, title=title, notes=converted)
    runner: ArtifactRunner | None = subject if isinstance(subject, ArtifactRunner) else None
    artifact: Artifact | None = None
    if runner is None:
        path = Path(require_name(subject))
        if (
            os.path.exists(path)
            and path.suffix in {row.suffix for row in RUNTIMES.values()}
            and not is_artifact(path)
        ):
            read_record(path)  # raises: an artifact needs its record
        found = resolve(subject, entry=entry)
        artifact = found if isinstance(found, Artifact) else None
        if artifact is None:
            weights = resolve_weights(found)
            network = load_classifier(weights) if weights.task == "classify" else load(weights)
            row = find_task(weights.task)
            return Subject(
                model=network,
                row=row,
                device=resolve_device(device),
                title=os.fspath(subject),
                notes=_notes(weights),
            )
    if precision != "fp32":
        raise UserError(f"--precision is {precision}; an artifact runs as it was exported, leave it out")
    if str(device) not in ("auto", "cpu"):
        raise UserError(f"--device is '{device}'; an artifact runs on the CPU, in its own runtime")
    if artifact is not None:
        from iformer.deploy.quiet import quiet

        with quiet():
            runner = open_artifact(artifact.path)
    assert runner is not None
    notes = []
    if not runner.info.record_sha256:
        notes = [f"{record_path(runner.path)} has no checksum, as in early versions: an edit would not show"]
    title = runner.info.file if isinstance(subject, ArtifactRunner) else os.fspath(subject)
    row = find_task(runner.info.task)
    return Subject(model=runner, row=row, device=torch.device("cpu"), title=title, notes=tuple(notes))


def _notes(weights: Weights) -> tuple[str, ...]:
    """Return what the user of a file should know: parts that are left out, and assumptions."""
    notes = []
    if weights.ignored:
        notes.append(f"{weights.source}: left out {listed(weights.ignored, limit=3)}: not part of the network")
    if not weights.described:
        assumed = weights.metadata.preprocessing.describe()
        notes.append(
            f"{weights.source} does not say how images are prepared; assumed: {assumed}; iformer convert "
            "--preprocessing writes a file that says it"
        )
    return tuple(notes)


def network_name(network: Any) -> str:
    """Return the name of a network's architecture."""
    config = network.config
    name: str = getattr(config, "name", "") or config.backbone.name
    return name
