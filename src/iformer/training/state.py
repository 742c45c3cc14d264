"""The state of a training run: everything that a resumed run needs to end with the same weights, bit for bit.

A state is one `.safetensors` file. Its tensors are the network, the EMA and the optimizer's moments; its header
holds the progress, the identity, the loss scaler and the network's config as JSON, and a checksum of header and
tensors. No pickle is read. There is no random state: all randomness is a function of the seed, the epoch or step,
and the index of the image.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from iformer.config.checking import Range, check_types, from_plain
from iformer.config.recipe import Recipe
from iformer.errors import ConfigError, UserError, WeightsError, one_line
from iformer.files import replacing
from iformer.models.weights.checkpoint import expected_shapes, stored_tensors
from iformer.models.weights.header import read_header, row_of, write_header
from iformer.models.weights.safetensors_file import open_safetensors
from iformer.training.distributed import RankContext
from iformer.training.network.ema import ModelEma
from iformer.training.network.fsdp import ShardedNetwork, shard_like, whole_tensor
from iformer.training.network.prepare import prepare_network
from iformer.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from iformer.training.records.run_folder import RunFolder

FORMAT = "iformer-training-2"
OLD_FORMAT = "iformer-training-1"
"""Format of early versions, which is still read. Its checksum, if present, does not cover the header."""

PATH_FIELDS = (
    *("model", "recipe.weights", "recipe.distillation.teacher"),
    *("recipe.teacher", "recipe.teacher_weights"),
)
"""Identity fields that may hold a file path. If the current path is absolute, only file names are compared."""

_UNSET = "(not set)"
_Count = Annotated[int, Range(0, 2**53)]


@dataclass(kw_only=True)
class TrainProgress:
    """Progress of a run. The training loop updates it in place."""

    step: _Count = 0
    """Optimizer steps done."""
    epoch: _Count = 0
    """Current epoch, from 0."""
    step_in_epoch: _Count = 0
    """Optimizer steps done in the current epoch; set to 0 after the epoch's evaluation."""
    seconds: float = 0.0
    """Time spent in seconds, without the time between a stop and the next `--resume`."""
    log_bytes: _Count = 0
    """Length of `log.jsonl` in bytes when the state was saved. A resumed run drops later records."""
    best: dict[str, Any] = field(default_factory=dict)
    """`epoch`, `step` and metrics of the best evaluation; empty before the first one."""
    patience_from: _Count = 0
    """Number of epochs that were done when the run was last made longer; `Recipe.patience` counts from there."""
    best_crc32: _Count | None = None
    """Checksum of the best network; see `iformer.training.checkpointer`. None: unknown."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the logged values over the steps of the current epoch."""


@dataclass(kw_only=True)
class TrainState:
    """All objects that training changes. Build one with `create`; `load` then restores a saved state."""

    model: nn.Module
    """The network, not wrapped in DistributedDataParallel."""
    ema: ModelEma | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: TrainProgress
    sharded: ShardedNetwork | None = None
    """The sharding of `model` over the ranks; None if every rank holds the whole network."""

    @classmethod
    def create(cls, model: nn.Module, recipe: Recipe, context: RankContext) -> TrainState:
        """Move a network to its device and build its EMA, optimizer and loss scaler. Every rank must call it."""
        model, ema = prepare_network(model, recipe, context)
        sharded = ShardedNetwork(model) if recipe.parallel == "fsdp" and context.world_size > 1 else None
        return cls(
            model=model,
            ema=ema,
            optimizer=build_optimizer(model, recipe),
            scaler=torch.amp.GradScaler(context.device.type, enabled=context.precision == "fp16"),
            progress=TrainProgress(),
            sharded=sharded,
        )

    def inference_model(self) -> nn.Module:
        """Return the network to evaluate and publish: the EMA if the run has one, else the current weights.

        Every rank must call it, because a sharded network is gathered.
        """
        if self.ema is not None:
            return self.ema.module
        return self.model if self.sharded is None else self.sharded.gather()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, unsharded. If the network is sharded, every rank must call it."""
        groups = {
            "model": {name: whole_tensor(tensor) for name, tensor in self.model.state_dict().items()},
            "average": self.ema.module.state_dict() if self.ema is not None else {},
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}

    def save(self, path: Path, *, identity: dict[str, Any], previous: Path | None = None) -> None:
        """Write the state atomically. If the network is sharded, ranks that do not write must call `tensors`.

        Args:
            path: the state file.
            identity: plain values that a resumed run must share with this one; see `check_identity`.
            previous: path to which a readable state at `path` is moved first. None: the old state is overwritten.

        Raises:
            OutputError: the file cannot be written. The old state remains, at `path` or at `previous`.
        """
        stored = stored_tensors(self.tensors())
        header = {
            "format": FORMAT,
            "position": json.dumps(asdict(self.progress)),
            "identity": json.dumps(identity),
            "scaler": json.dumps(self.scaler.state_dict()),
            **_described(self.model, source=str(path)),
        }
        contents = serialize(stored, {**header, "crc32": str(checksum(header, stored))})
        with replacing(path) as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())  # the new state is on disk before the old one is renamed
            if previous is not None and saved_step(path) is not None:
                os.replace(path, previous)

    def load(self, saved: SavedState) -> None:
        """Restore a saved state into model, EMA, optimizer and scaler, which `create` has built.

        Raises:
            WeightsError: the tensors do not fit this network.
        """
        try:
            current = self.model.state_dict()
            self.model.load_state_dict(
                {name: shard_like(current.get(name), tensor) for name, tensor in saved.group("model").items()}
            )
            if self.ema is not None:
                self.ema.module.load_state_dict(saved.group("average"))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"{saved.path} does not fit this network: {reason}") from None
        load_optimizer_tensors(self.optimizer, self.model, saved.group("optimizer"))
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.progress = saved.progress


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The contents of a state file."""

    path: Path
    progress: TrainProgress
    identity: dict[str, Any]
    scaler: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the group `model`, `average` or `optimizer`, by name without the prefix."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def read_state(path: Path) -> SavedState:
    """Read a state file.

    Raises:
        WeightsError: the file is damaged or is not the state of a training run.
    """
    with open_safetensors(path) as file:
        header = file.metadata() or {}
        if header.get("format") not in (FORMAT, OLD_FORMAT):
            raise WeightsError(f"{path} is damaged, or is not the saved state of a training run")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = header.pop("crc32", None)
    if header["format"] == FORMAT:
        sound = stored == str(checksum(header, tensors))
    else:
        sound = stored is None or stored == str(_old_checksum(tensors))
    if not sound:
        raise WeightsError(f"{path} is damaged: its checksum does not match its contents")
    try:
        identity, scaler = (json.loads(header[name]) for name in ("identity", "scaler"))
        if not isinstance(identity, dict) or not isinstance(scaler, dict):
            raise ValueError("identity and scaler must be mappings")
        progress = from_plain(TrainProgress, json.loads(header["position"]))
        check_types(progress)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {one_line(error)}") from None
    return SavedState(path=path, progress=progress, identity=identity, scaler=scaler, tensors=tensors)


def read_newest_state(files: RunFolder) -> tuple[SavedState, str | None] | None:
    """Read the newest undamaged state of a run.

    Returns:
        The state, and a warning (or None) if the previous file had to be used. None if there is no state file.

    Raises:
        WeightsError: every state file is damaged.
    """
    damage: WeightsError | None = None
    for path in (files.state, files.state_before):
        if not path.is_file():
            continue
        try:
            saved = read_state(path)
        except WeightsError as error:
            damage = damage or error
            continue
        if path == files.state:
            return saved, None
        reason = str(damage) if damage else f"{files.state} is missing (the run was killed while it was written)"
        return saved, f"{reason}; continuing from the state before it, of step {saved.progress.step}"
    if damage is not None:
        raise WeightsError(f"{damage}; there is no other state, so start again with --overwrite") from None
    return None


def stored_network(files: RunFolder) -> nn.Module | None:
    """Build the network of a run from the config in its state file, with random weights.

    A resumed run therefore does not need the file that the run started from.

    Returns:
        The network. None if the state holds no config: states of early versions, and networks of other packages.
    """
    for path in (files.state, files.state_before):
        try:
            with open_safetensors(path) as file:
                header = {**(file.metadata() or {}), "format": ""}  # a state's format is not a checkpoint's
                config, metadata = read_header(header, str(path))
                shapes = {
                    name.removeprefix("model/"): tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                    if name.startswith("model/")
                }
            if expected_shapes(config) != shapes:
                continue
        except (WeightsError, ConfigError):
            continue
        row = row_of(config, metadata.task)
        assert row is not None
        network: Any = row.network_class()(config)
        network.metadata = metadata
        return network  # type: ignore[no-any-return]
    return None


def _described(model: nn.Module, *, source: str) -> dict[str, str]:
    """Return an iFormer network's config and metadata as header fields; an empty mapping for other networks."""
    known = getattr(model, "metadata", None)
    row = row_of(getattr(model, "config", None), getattr(known, "task", ""))
    if row is None or known is None:
        return {}
    metadata = replace(known, task=row.task, class_names=(), metrics={}, provenance={})
    return write_header(model.config, metadata, source=source)  # type: ignore[arg-type]


def last_good_step(files: RunFolder) -> int | None:
    """Return the optimizer step of a run's newest readable state; None if no state is readable."""
    steps = [saved_step(path) for path in (files.state, files.state_before)]
    return next((step for step in steps if step is not None), None)


def saved_step(path: Path) -> int | None:
    """Return the optimizer step from the header of a state file; None if the file cannot be read."""
    try:
        with open_safetensors(path) as file:
            return int(json.loads((file.metadata() or {})["position"])["step"])
    except (WeightsError, KeyError, TypeError, ValueError, RecursionError):
        return None


def extend(progress: TrainProgress, saved: dict[str, Any], current: dict[str, Any]) -> str:
    """Accept more epochs or steps and another `patience` of a resumed run.

    They are copied from the current recipe to the saved one. In a run that becomes longer, the patience is counted
    anew, because a run that was stopped by it would stop at once.

    Args:
        progress: progress in the state file; changed in place.
        saved: the recipe in the state file; changed in place.
        current: the recipe of this run.

    Returns:
        A line that says what changed; an empty string if nothing changed.
    """
    changes = []
    for name in ("epochs", "max_steps"):
        before, now = saved.get(name), current.get(name)
        if before != now and before is not None and (now is None or now > before):
            saved[name] = now
            changes.append(f"{name} was {before}, is {now}")
            progress.patience_from = progress.epoch
    if changes:
        changes.append("the learning rate follows the longer schedule")
    before, now = saved.get("patience"), current.get("patience")
    if before != now:
        saved["patience"] = now
        changes.append(f"patience was {before}, is {now}")
    return "; ".join(changes)


_IMAGES = {
    "data.train_fingerprint": "the training images or their labels changed",
    "data.val_fingerprint": "the validation images or their labels changed",
}
"""What a different value of a field means where the values themselves, hashes, tell a reader nothing."""


def check_identity(
    saved: dict[str, Any], current: dict[str, Any], *, folder: Path, defaults: dict[str, Any] | None = None
) -> None:
    """Check that a resumed run has the same settings and data as the run that was started.

    Args:
        saved: identity in the state file.
        current: identity of this run.
        folder: the run folder, for the error message.
        defaults: values of fields that an older version did not save.

    Raises:
        UserError: the identities differ. The message names each differing field with both values; of images it
            says that they changed.
    """
    before, now = {**flat(defaults or {}), **flat(saved)}, flat(current)
    differences = [
        _IMAGES.get(name) or f"{name} was {_short(before.get(name, _UNSET))}, is {_short(now.get(name, _UNSET))}"
        for name in sorted(before.keys() | now.keys())
        if not _same(name, before.get(name), now.get(name))  # a later version's field that is None changes nothing
    ]
    if differences:
        raise UserError(
            f"cannot resume {folder}, because this is not the run that was started there: "
            f"{'; '.join(differences)}. Give the same settings, or another --out"
        )


def checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the header (without `crc32`) and of the tensors' names, types, shapes and bytes."""
    layout = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in sorted(tensors)]
    text = json.dumps([sorted(header.items()), layout])
    return _old_checksum(tensors, zlib.crc32(text.encode()))


def _old_checksum(tensors: Mapping[str, Tensor], crc: int = 0) -> int:
    """Return the CRC-32 of the tensors' names and bytes, sorted by name and continuing from `crc`."""
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = zlib.crc32(name.encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted names, such as `recipe.augment.hflip`."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{name}."))
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _same(name: str, before: Any, now: Any) -> bool:
    if name in PATH_FIELDS and isinstance(before, str) and isinstance(now, str) and Path(now).is_absolute():
        return Path(before).name == Path(now).name
    return bool(before == now)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
