"""Checkpoints: one `.safetensors` file that holds the weights and, in its header, what they are.

The header's strings are `format` ("iformer-1"), `network` (JSON of `NetworkConfig.to_plain()`) and
`metadata` (JSON of `Metadata.to_plain()`). Reading runs no pickle. Writing replaces the file in one step,
so that neither a crash nor a full disk leaves half a checkpoint behind.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.errors import ConfigError, UserError, WeightsError
from iformer.files import write_bytes
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier

FORMAT = "iformer-1"
SUFFIX = ".safetensors"
HEAD_PREFIX = "head."
TASK_NETWORK = "task_network"
"""The header's key for a detector or segmenter; `iformer.models.weights.dense_checkpoint` reads those."""
Format = Literal["iformer", "timm", "authors"]

_LISTED_KEYS = 10
_MAX_BLOCKS = 10_000
"""More blocks than any file holds: a config that asks for more is refused before it is built."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's weights by our key names, in the precision they are stored in, and what is known of them."""

    source: str
    """The file they were read from, for messages."""
    format: Format
    """Whose key names the file had."""
    config: NetworkConfig
    state_dict: dict[str, Tensor]
    metadata: Metadata


# ------------------------------------------------------------------------------------------- public


def save(
    model: Backbone, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, **metadata_fields: Any
) -> None:
    """Write a network and its metadata to one `.safetensors` file, atomically.

    Args:
        model: a `Classifier` or `Backbone` that is not folded, on any device.
        path: the file, in a folder that exists; an older file there is replaced only by a complete one.
        dtype: `torch.float16` or `torch.bfloat16` halves the file: convolution and linear weights are
            stored so, norms, statistics, biases and layer scales as they are. None stores all as it is.
        metadata_fields: fields of `Metadata` to use in the place of `model.metadata`'s.

    Raises:
        WeightsError: a weight does not fit into `dtype`, or the number of class names is not the network's
            number of classes.
        OutputError: the file cannot be written.
        UserError: `model` is not an iFormer network, or is folded.
        ConfigError: a metadata field is unknown or invalid.
    """
    if not isinstance(model, Backbone):
        hint = "; pass the network inside it" if isinstance(model, nn.Module) else ""
        raise UserError(f"save takes an iFormer network; got {type(model).__name__}{hint}")
    if model.is_folded:
        raise UserError("a folded network is for inference and cannot be saved; save the one it was made from")
    metadata = metadata_with(model.metadata, **metadata_fields)
    write_checkpoint(path, model.state_dict(), stored_config(model), metadata, dtype=dtype)


def load(path: str | os.PathLike[str], *, features_only: bool = False) -> Backbone:
    """The network of one of our checkpoints, in eval mode, in fp32, on the CPU.

    Args:
        path: a file that `save`, training or `iformer convert` wrote.
        features_only: give a `Backbone`; the head's weights, if there are any, are left out.

    Raises:
        WeightsError: there is no such file, it is damaged, it is not one of our checkpoints, or its
            weights do not fit its config; keys that are missing, extra or misshapen are listed.
    """
    weights = read_checkpoint(path)
    with torch.device("meta"):  # a shell without memory and without random initialisation
        model = Backbone(weights.config) if features_only else Classifier(weights.config)
    state_dict = without_head(weights.state_dict) if features_only else weights.state_dict
    load_strict(model, state_dict, source=weights.source)
    model.metadata = without_classes(weights.metadata) if features_only else weights.metadata
    return model.eval()


def read_metadata(path: str | os.PathLike[str]) -> tuple[NetworkConfig, Metadata]:
    """Config and metadata of one of our checkpoints; reads the header only.

    Raises:
        WeightsError: there is no such file, it is damaged, or it is not one of our checkpoints.
    """
    with open_safetensors(path) as file:
        return parse_header(file.metadata() or {}, str(path))


# ------------------------------------------------------------------------- for the modules beside it


def stored_config(model: Backbone) -> NetworkConfig:
    """The config a checkpoint of `model` has: a network without a head is stored with 0 classes."""
    if isinstance(model, Classifier):
        return model.config
    return model.config.with_options(num_classes=0)


def metadata_with(metadata: Metadata, **fields: Any) -> Metadata:
    """`metadata` with some fields changed and checked; an unknown field is a `ConfigError`."""
    known = sorted(Metadata.__dataclass_fields__)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(f"Metadata has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    return replace(metadata, **fields)


def write_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: NetworkConfig,
    metadata: Metadata,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights by our key names as one of our checkpoints; see `save`."""
    if Path(path).suffix != SUFFIX:
        raise WeightsError(f"{path}: a checkpoint is a {SUFFIX} file; give a name that ends so")
    header = {"format": FORMAT, **header_of(config, metadata, source=str(path))}
    write_bytes(path, serialize(stored_tensors(state_dict, dtype), header))


def header_of(config: NetworkConfig, metadata: Metadata, *, source: str) -> dict[str, str]:
    """Config and metadata as strings of a safetensors header.

    Raises:
        WeightsError: the class names are not as many as the classes, or JSON cannot hold the metadata.
    """
    _check_class_names(config, metadata, source)
    try:
        text = json.dumps(metadata.to_plain())
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: the metadata cannot be written as JSON: {error}") from error
    return {"network": json.dumps(config.to_plain()), "metadata": text}


def stored_tensors(state_dict: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Contiguous CPU tensors to write, matrices and kernels in `dtype`.

    Vectors stay as they are: they are a percent of the file, and a running variance or a layer scale of
    1e-6 does not survive half precision.
    """
    stored = {}
    for key, tensor in state_dict.items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.is_floating_point() and _is_matrix(tensor):
            halved = tensor.to(dtype)
            if not torch.isfinite(halved).all() and torch.isfinite(tensor).all():
                raise WeightsError(f"{key} has values that {dtype} cannot hold; save without dtype")
            tensor = halved
        stored[key] = tensor.clone(memory_format=torch.contiguous_format)
    return stored


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it is a kernel or matrix; a layer scale of the other formats, 1 x C x 1 x 1, is a vector."""
    return sum(side > 1 for side in tensor.shape) > 1


def read_checkpoint(path: str | os.PathLike[str]) -> Weights:
    """Read one of our checkpoints; its weights are known to fit its config.

    Raises:
        WeightsError: see `load`.
    """
    source = str(path)
    with open_safetensors(path) as file:
        config, metadata = parse_header(file.metadata() or {}, source)
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        try:
            expected = expected_shapes(config)
        except ConfigError as error:
            raise WeightsError(f"{source}: the description in its header is invalid: {error}") from error
        check_fit(expected, found, source=source, network=config.name)
        state_dict = {key: file.get_tensor(key) for key in found}
    return Weights(source=source, format="iformer", config=config, state_dict=state_dict, metadata=metadata)


def expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a network's state dict and its shape, found without memory for the weights."""
    try:
        with torch.device("meta"):
            return {key: tuple(value.shape) for key, value in Classifier(config).state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond what a tensor can have
        raise ConfigError(f"the network {config.name} cannot be built: {one_line(error)}") from error


def check_fit(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    network: str,
) -> None:
    """Raise one `WeightsError` that lists every missing, unexpected and misshapen key, if there are any."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshapen = [
        f"{key} {_shape(found[key])} instead of {_shape(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    warnings = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", extra), ("of another shape", misshapen))
        if names
    ]
    if warnings:
        raise WeightsError(f"{source}: its weights do not fit {network}: " + "; ".join(warnings))


def listed(names: list[str]) -> str:
    """The first ten names, and how many more there are."""
    shown = ", ".join(_printable(name) for name in names[:_LISTED_KEYS])
    more = len(names) - _LISTED_KEYS
    return shown if more <= 0 else f"{shown} and {more} more"


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Give `model`, which may be on the meta device, copies of weights: fp32, counters as int64. Strict.

    Raises:
        WeightsError: a key is missing, extra or misshapen, or a tensor is of another kind of number.
    """
    own = model.state_dict()
    name = model.config.name if isinstance(model, Backbone) else type(model).__name__
    check_fit(
        {key: tuple(value.shape) for key, value in own.items()},
        {key: tuple(value.shape) for key, value in state_dict.items()},
        source=source,
        network=name,
    )
    wrong = [
        f"{key} ({value.dtype})"
        for key, value in state_dict.items()
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex()
    ]
    if wrong:
        raise WeightsError(f"{source}: weights are floating-point numbers, counters whole; found {listed(wrong)}")
    copies = {
        key: value.detach().to(
            "cpu",
            torch.float32 if value.is_floating_point() else torch.int64,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for key, value in state_dict.items()
    }
    model.load_state_dict(copies, strict=True, assign=True)


def without_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights but those of the head."""
    return {key: value for key, value in state_dict.items() if not key.startswith(HEAD_PREFIX)}


def without_classes(metadata: Metadata) -> Metadata:
    """What still holds of weights whose head is gone: preprocessing and origin."""
    return replace(metadata, class_names=(), metrics={})


def parse_header(header: Mapping[str, str], source: str) -> tuple[NetworkConfig, Metadata]:
    """Config and metadata of a checkpoint's header.

    Raises:
        WeightsError: it is not a header of ours, of a later version, or invalid.
    """
    if TASK_NETWORK in header:
        raise WeightsError(f"{source} holds a network for detection or segmentation; a classifier is needed")
    if "network" not in header or "metadata" not in header or not header.get("format", "").startswith("iformer-"):
        raise WeightsError(
            f"{source} is a safetensors file but no iFormer checkpoint (its header names no network); "
            f"if it holds timm's weights, run: iformer convert {source} OUT.safetensors --to iformer"
        )
    check_version(header, source)
    return parse_network(header, source)


def check_version(header: Mapping[str, str], source: str) -> None:
    """Raise `WeightsError` if a header is of another version than this one reads."""
    version = header.get("format", "")
    if version != FORMAT:
        raise WeightsError(
            f"{source} has format {_printable(version)}, this iformer reads {FORMAT}; upgrade iformer"
        )


def parse_network(header: Mapping[str, str], source: str) -> tuple[NetworkConfig, Metadata]:
    """The config and metadata in a header's strings; `WeightsError` where they are invalid."""
    try:
        plain = json.loads(header["network"])
        _check_depth(plain)
        config = NetworkConfig.from_plain(plain)
        metadata = Metadata.from_plain(json.loads(header["metadata"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{source}: the description in its header is invalid: {one_line(error)}") from error
    _check_class_names(config, metadata, source)
    return config, metadata


def one_line(error: object) -> str:
    """The first line of an error's text, of a length that a terminal can show."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return _printable(first, limit=200)


def _check_depth(plain: Any) -> None:
    for stage in plain.get("stages", ()) if isinstance(plain, dict) else ():
        pattern = stage.get("pattern", ()) if isinstance(stage, dict) else ()
        counts = [run[1] for run in pattern if isinstance(run, list) and len(run) == 2]
        if sum(max(count, 0) for count in counts if isinstance(count, int)) > _MAX_BLOCKS:
            raise ConfigError(f"StageConfig.pattern has more than {_MAX_BLOCKS} blocks")


def _check_class_names(config: NetworkConfig, metadata: Metadata, source: str) -> None:
    names = len(metadata.class_names)
    if metadata.task == "classify" and names and names != config.num_classes:
        raise WeightsError(
            f"{source}: there are {names} class names for {config.num_classes} classes; give one name a class"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _printable(text: str, limit: int = 120) -> str:
    """Text from a file that may be hostile, for one line of a terminal."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


# ---------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An open safetensors file; what cannot be opened is a `WeightsError` that says what was found."""
    try:
        file = safe_open(os.fspath(path), framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: the file was replaced while it was being opened
        raise unreadable(path, error) from error
    try:
        with file as opened:
            yield opened
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {one_line(error)}") from error


def unreadable(path: str | os.PathLike[str], error: Exception | None = None) -> WeightsError:
    """Why `path` cannot be read as weights: what was found there and what to do."""
    path = Path(path)
    if not path.exists():
        return WeightsError(f"{path} does not exist; give the path of a weight file")
    if path.is_dir():
        return WeightsError(f"{path} is a folder; give the {SUFFIX} file in it")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as os_error:
        return WeightsError(f"{path} cannot be read: {os_error.strerror or os_error}")
    again = "download or copy it again"
    if not start:
        return WeightsError(f"{path} is empty (0 bytes); {again}")
    if start.startswith((b"PK", b"\x80")):
        return WeightsError(
            f"{path} is a PyTorch pickle, not a {SUFFIX} file; "
            f"run: iformer convert {path} OUT{SUFFIX} --to iformer"
        )
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return WeightsError(f"{path} is a web page, not a weight file; {again}")
    size = path.stat().st_size
    reason = f" ({one_line(error)})" if error is not None else ""
    if start[8:9] == b"{":
        return WeightsError(f"{path} is truncated or damaged ({size} bytes){reason}; {again}")
    return WeightsError(f"{path} is not a weight file, or is damaged ({size} bytes){reason}; {again}")
