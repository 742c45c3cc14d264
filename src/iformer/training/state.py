"""The state from which a run continues, and the networks that it keeps.

A state is one `.safetensors` file: weights, averaged weights and optimizer moments as tensors, where the run
was as JSON in the header. Reading it runs no pickle. No random state is in it: everything random is a
function of the seed, the epoch or step, and the image's index.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.errors import UserError, WeightsError
from iformer.files import replacing, write_bytes
from iformer.models.backbone import Backbone
from iformer.models.weights import checkpoint as weights
from iformer.models.weights.dense_checkpoint import DenseNetwork, save_dense
from iformer.training.network.ema import WeightAverage
from iformer.training.network.fsdp import whole_tensor
from iformer.training.optimizer import optimizer_tensors, restore_optimizer
from iformer.training.records.run_folder import RunFolder

FORMAT = "iformer-training-1"

_UNSET = "(not there)"


@dataclass(kw_only=True)
class TrainProgress:
    """Where a run is. It changes as the run goes on."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """The epoch under way, from 0."""
    step_in_epoch: int = 0
    """Optimizer steps done in it; all of them until it is evaluated."""
    seconds: float = 0.0
    """Time spent, over all sessions."""
    log_bytes: int = 0
    """Length of the log when the state was saved; what was written later is repeated and so dropped."""
    best: dict[str, Any] = field(default_factory=dict)
    """`epoch`, `step` and metrics of the best evaluation; empty before the first."""
    sums: dict[str, float] = field(default_factory=dict)
    """Running sums of the epoch's logged values."""


def state_tensors(
    model: nn.Module, average: WeightAverage | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What a state holds, by name. Of a sharded network all processes have to ask; each gets whole tensors."""
    groups = {
        "model": {name: whole_tensor(tensor) for name, tensor in model.state_dict().items()},
        "average": average.module.state_dict() if average else {},
        "optimizer": optimizer_tensors(optimizer, model),
    }
    return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def save_state(
    path: Path,
    *,
    model: nn.Module,
    average: WeightAverage | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    position: TrainProgress,
    identity: dict[str, Any],
    before: Path | None = None,
) -> None:
    """Write a run's state atomically.

    Args:
        before: where the state that was at `path` is kept; None: nowhere.
        identity: what a resumed run must share with this one, as nested plain values; see `check_identity`.

    Raises:
        OutputError: it cannot be written; the state that was there is still there.
    """
    tensors = state_tensors(model, average, optimizer)
    header = {
        "format": FORMAT,
        "position": json.dumps(asdict(position)),
        "identity": json.dumps(identity),
        "scaler": json.dumps(scaler.state_dict()),
    }
    stored = weights.stored_tensors(tensors, None)
    header["crc32"] = str(_checksum(stored))
    contents = serialize(stored, header)
    with replacing(path) as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())  # the new state is on the disk before the old one gives up its name
        if before is not None and saved_step(path) is not None:
            os.replace(path, before)


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state as read from a file."""

    path: Path
    position: TrainProgress
    identity: dict[str, Any]
    scaler: dict[str, Any]
    tensors: dict[str, Tensor]

    def restore(
        self,
        *,
        model: nn.Module,
        average: WeightAverage | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Put the state into a run's parts, which were built as for a new run.

        Raises:
            WeightsError: the tensors do not fit these parts.
        """
        self.restore_network(model, average)
        self.restore_optimizer(model, optimizer, scaler)

    def restore_network(self, model: nn.Module, average: WeightAverage | None) -> None:
        """The part of `restore` that comes before a network is sharded."""
        try:
            model.load_state_dict(self._group("model"))
            if average is not None:
                average.module.load_state_dict(self._group("average"))
        except RuntimeError as error:
            raise WeightsError(f"{self.path} does not fit this network: {' '.join(str(error).split())}") from None

    def restore_optimizer(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """The part of `restore` that comes after."""
        restore_optimizer(optimizer, model, self._group("optimizer"))
        if self.scaler:
            scaler.load_state_dict(self.scaler)

    def _group(self, group: str) -> dict[str, Tensor]:
        prefix = f"{group}/"
        return {
            name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)
        }


def read_state(path: Path) -> SavedState:
    """Read what `save_state` wrote.

    Raises:
        WeightsError: the file is damaged or is no state of a run.
    """
    with weights.open_safetensors(path) as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise WeightsError(f"{path} is not the saved state of a training run")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "crc32" in header and header["crc32"] != str(_checksum(tensors)):
        raise WeightsError(f"{path} is damaged: its contents do not have their checksum")
    try:
        return SavedState(
            path=path,
            position=TrainProgress(**json.loads(header["position"])),
            identity=json.loads(header["identity"]),
            scaler=json.loads(header["scaler"]),
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {weights.one_line(error)}") from None


def read_last_good(files: RunFolder) -> tuple[SavedState, str | None] | None:
    """The newest state of a run that can be read, or None where there is none at all.

    Returns:
        The state, and where it is not the newest a line that says why.

    Raises:
        WeightsError: there are states and none can be read.
    """
    problem: WeightsError | None = None
    for path in (files.state, files.state_before):
        if not path.is_file():
            continue
        try:
            saved = read_state(path)
        except WeightsError as error:
            problem = problem or error
            continue
        if path == files.state:
            return saved, None
        reason = (
            str(problem) if problem else f"{files.state} is missing, as if the run was killed while writing it"
        )
        return saved, f"{reason}; continuing from the state before it, of step {saved.position.step}"
    if problem is not None:
        raise WeightsError(f"{problem}; there is no other state, so begin again with --overwrite") from None
    return None


def last_good_step(files: RunFolder) -> int | None:
    """The optimizer steps behind the newest sound state of a run, or None where there is none."""
    steps = [saved_step(path) for path in (files.state, files.state_before)]
    return next((step for step in steps if step is not None), None)


def saved_step(path: Path) -> int | None:
    """The optimizer steps that a saved state has behind it, or None where there is no (sound) state."""
    try:
        with weights.open_safetensors(path) as file:
            return int(json.loads((file.metadata() or {})["position"])["step"])
    except (WeightsError, KeyError, TypeError, ValueError):
        return None


def check_identity(
    saved: dict[str, Any], current: dict[str, Any], *, folder: Path, defaults: dict[str, Any] | None = None
) -> None:
    """See that a resumed run is the run that was saved.

    Args:
        defaults: what a field had to be before it was one: a run of an older version has it so.

    Raises:
        UserError: they differ; the message names each field with both values.
    """
    before, now = {**_flat(defaults or {}), **_flat(saved)}, _flat(current)
    differences = [
        f"{name} was {_short(before.get(name, _UNSET))}, is {_short(now.get(name, _UNSET))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, _UNSET) != now.get(name, _UNSET)
    ]
    if differences:
        raise UserError(
            f"cannot resume {folder}, because this is not the run that was started there: "
            f"{'; '.join(differences)}. Give the same settings, or another --out"
        )


def save_network(model: nn.Module, path: Path, *, name: str, metadata: Metadata) -> None:
    """Keep a network: ours in our checkpoint format, any other (a peer of a benchmark) as plain tensors.

    Raises:
        OutputError: it cannot be written; the file that was there is still there.
    """
    if isinstance(model, Backbone):
        model.metadata = metadata
        weights.save(model, path)
        return
    if isinstance(model, DenseNetwork):
        save_dense(model, path, metadata)
        return
    header = {"format": "pt", "network": json.dumps(name), "metadata": json.dumps(metadata.to_plain())}
    write_bytes(path, serialize(weights.stored_tensors(model.state_dict(), None), header))


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors in the order of their names."""
    checksum = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        checksum = zlib.crc32(name.encode(), checksum)
        if tensor.numel():
            checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
