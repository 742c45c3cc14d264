"""Weight files of ours, timm and the authors: whose they are, reading them, and writing one as another."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from iformer.config.metadata import Metadata
from iformer.config.network import AttentionConfig, NetworkConfig
from iformer.config.variants import list_models, network_config
from iformer.errors import UserError, WeightsError
from iformer.files import write_bytes
from iformer.models.weights.checkpoint import (
    FORMAT,
    SUFFIX,
    Format,
    Weights,
    check_fit,
    header_of,
    listed,
    metadata_with,
    open_safetensors,
    parse_network,
    read_checkpoint,
    stored_tensors,
    unreadable,
    write_checkpoint,
)
from iformer.models.weights.dialects import (
    DIALECTS,
    NETWORK_FORM,
    Foreign,
    from_foreign,
    keys_of,
    shapes_of,
    to_authors,
    to_timm,
)
from iformer.models.weights.pickles import PICKLE_SUFFIXES, read_pickle

FORMATS: tuple[Format, ...] = ("iformer", "timm", "authors")


# ----------------------------------------------------------------------------------- recognition

_MARKERS: dict[Format, str] = {
    "iformer": "stem.conv1.conv.weight",
    "timm": "stem.conv1.c.weight",
    "authors": "downsample_layers.0.0.c.weight",
}


def recognise(state_dict: Mapping[str, Any]) -> Format:
    """Whose key names a state dict has.

    Raises:
        WeightsError: nobody's; the message shows some of the keys.
    """
    for name, marker in _MARKERS.items():
        if marker in state_dict:
            return name
    if any(key in state_dict for key in ("stem.conv1.weight", "downsample_layers.0.0.weight")):
        raise WeightsError("it holds a folded (fused) network; give the weights it was made from")
    raise WeightsError(
        f"it holds no iFormer weights (no {', '.join(_MARKERS.values())}); "
        f"its {len(state_dict)} keys are {listed([str(key) for key in state_dict]) or 'none'}"
    )


def recognise_network(state_dict: Mapping[str, Tensor], source: str = "state dict") -> NetworkConfig:
    """The config of a size in the table of variants, from a state dict in any of the three formats.

    Classes, input channels and distillation are those of the weights.

    Raises:
        WeightsError: they fit no size; keys that do not fit the nearest one are listed.
    """
    named = recognise(state_dict)
    found = {key: tuple(value.shape) for key, value in state_dict.items()}
    options = _head_and_input(found, named)
    rows = [
        _table_row(base, distillation=bool(options["distillation"])).with_options(**options) for base in _bases()
    ]
    for config in rows:
        # names first: to know the shapes, a network has to be built
        if keys_of(config, named) == found.keys() and shapes_of(config, named) == found:
            return config
    shapes_of_rows = [shapes_of(config, named) for config in rows]
    matches = [sum(found.get(key) == shape for key, shape in shapes.items()) for shapes in shapes_of_rows]
    nearest = matches.index(max(matches))
    network = f"any size; the nearest is {rows[nearest].name}"
    check_fit(shapes_of_rows[nearest], found, source=source, network=network)
    raise AssertionError("unreachable: shapes that differ do not fit")


def variant_name(config: NetworkConfig) -> str | None:
    """The name of the row in the table of variants that `config` is, or None.

    Classes, input channels and stochastic depth do not count; with distillation it is the distilled name.
    """
    for base in _bases():
        row = _table_row(base, distillation=config.distillation)
        if not differences(row, config):
            return row.name
    return None


def differences(a: NetworkConfig, b: NetworkConfig) -> list[str]:
    """The fields in which two backbones differ so that weights of one are wrong in the other."""
    found = []
    if (a.layer_scale_init is None) != (b.layer_scale_init is None):
        found.append("layer_scale_init")
    found += [name for name in NETWORK_FORM if getattr(a, name) != getattr(b, name)]
    for index, (stage_a, stage_b) in enumerate(zip(a.stages, b.stages, strict=True)):
        pairs: dict[str, tuple[Any, Any]] = {
            "channels": (stage_a.channels, stage_b.channels),
            "pattern": (stage_a.blocks, stage_b.blocks),
            "expanded_kernel_size": (stage_a.expanded_kernel_size, stage_b.expanded_kernel_size),
        }
        if "conv" in stage_a.blocks:
            for name in ("conv_kernel_size", "conv_expansion_ratio"):
                pairs[name] = (getattr(stage_a, name), getattr(stage_b, name))
        if "attention" in stage_a.blocks:
            for name in AttentionConfig.__dataclass_fields__:
                pairs[name] = (getattr(stage_a.attention, name), getattr(stage_b.attention, name))
        found += [f"stage {index + 1} {name}" for name, (left, right) in pairs.items() if left != right]
    return found


def _bases() -> list[str]:
    return [name for name in list_models() if not network_config(name).distillation]


def _table_row(base: str, *, distillation: bool) -> NetworkConfig:
    names = (name for name in list_models() if name == base or name.startswith(base + "_"))
    return next(config for config in map(network_config, names) if config.distillation == distillation)


def _head_and_input(found: Mapping[str, tuple[int, ...]], named: Format) -> dict[str, Any]:
    if named == "iformer":
        classifier, distilled, weight = "head.classifier", "head.distilled", "linear.weight"
    else:
        classifier, distilled, weight = DIALECTS[named].classifier, DIALECTS[named].distilled, "l.weight"
    stem = found[_MARKERS[named]]
    linear = found.get(f"{classifier}.{weight}", ())
    return {
        "in_chans": max(stem[1], 1) if len(stem) == 4 else 3,
        "num_classes": linear[0] if len(linear) == 2 else 0,
        "distillation": f"{distilled}.{weight}" in found,
    }


# --------------------------------------------------------------------------------------- reading


def read_weights(path: str | os.PathLike[str], *, entry: str | None = None) -> Weights:
    """Read weights in any of the three formats, by what the file holds and not by its name.

    Args:
        path: our `.safetensors`, timm's `.safetensors` or pickle, or the authors' pickle.
        entry: which of a training checkpoint's state dicts to read (`model`, `model_ema`, `state_dict`,
            ...); None takes the first of `iformer.models.weights.pickles.ENTRIES` that is there.

    Raises:
        WeightsError: there is no such file, it is damaged, it asks for code to be run, it holds something
            else, or its keys fit no network.
    """
    source = str(path)
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise unreadable(path, error) from error
    header: dict[str, str] = {}
    # a safetensors file is a length of 8 bytes, the first of which may be 0x80 too, then a JSON object
    if start.startswith((b"PK", b"\x80")) and start[8:9] != b"{":
        state_dict = read_pickle(path, entry=entry)
    else:
        with open_safetensors(path) as opened:
            header = dict(opened.metadata() or {})
            if header.get("format", "").startswith(FORMAT.rpartition("-")[0] + "-"):
                return read_checkpoint(path)
            state_dict = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    state_dict = _without_wrapper_prefix(state_dict)
    try:
        named = recognise(state_dict)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    config = recognise_network(state_dict, source)
    metadata = Metadata(provenance={"source_file": path.name, "source_format": named})
    if "network" in header and "metadata" in header:
        described, metadata = parse_network(header, source)
        if differences(described, config) or described.num_classes != config.num_classes:
            raise WeightsError(f"{source}: its header describes another network than its weights")
    ours = state_dict if named == "iformer" else from_foreign(state_dict, config, named, source)
    return Weights(source=source, format=named, config=config, state_dict=ours, metadata=metadata)


def _without_wrapper_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` of DistributedDataParallel or the `_orig_mod.` of torch.compile."""
    for prefix in ("module.", "_orig_mod."):
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


# --------------------------------------------------------------------------------------- command


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert_file` did."""

    source: str
    source_format: Format
    out: str
    format: Format
    model: str
    num_classes: int
    in_chans: int
    distillation: bool
    tensors: int
    bytes: int
    class_names_written: bool


def convert_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Format,
    model: str | None = None,
    class_names: tuple[str, ...] | None = None,
    half: bool = False,
    overwrite: bool = False,
    entry: str | None = None,
) -> Conversion:
    """Read a weight file in any of the three formats and write it in one of them.

    Args:
        source: its format and size are recognised.
        out: `.safetensors` for ours; `.safetensors` or a pickle (`.pth`, `.pt`, `.bin`) for timm's; a pickle
            for the authors'. Written in one step.
        to: whose key names `out` gets.
        model: the size that `source` must hold, a name of `list_models`; None takes what it holds.
        class_names: one name a class; None keeps those of `source`, where it has any.
        half: store kernels and matrices in half precision; otherwise no value is changed.
        overwrite: replace `out` where it exists.
        entry: see `read_weights`.

    Raises:
        UnknownNameError: `model` is no size.
        WeightsError: see `read_weights`; or it holds another size than `model`, `out` exists, the class names are
            not as many as the classes, or the target's code has no such network.
        OutputError: `out` cannot be written.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format '{to}'; expected one of {', '.join(FORMATS)}")
    expected = None if model is None else network_config(model)
    out = Path(out)
    _check_out(out, to, overwrite=overwrite)
    weights = read_weights(source, entry=entry)
    config = weights.config
    if expected is not None and (differences(expected, config) or expected.distillation != config.distillation):
        raise WeightsError(f"{source} holds {variant_name(config) or config.name}, not {model}")
    metadata = weights.metadata
    if weights.format != "iformer":
        metadata = _with_source(metadata, weights, Path(source))
    if class_names is not None:
        metadata = metadata_with(metadata, class_names=class_names)
    dtype = torch.float16 if half else None
    if to == "iformer":
        write_checkpoint(out, weights.state_dict, config, metadata, dtype=dtype)
    else:
        _write_foreign(out, weights.state_dict, config, metadata, to, dtype)
    return Conversion(
        source=str(source),
        source_format=weights.format,
        out=str(out),
        format=to,
        model=variant_name(config) or config.name,
        num_classes=config.num_classes,
        in_chans=config.in_chans,
        distillation=config.distillation,
        tensors=len(weights.state_dict),
        bytes=out.stat().st_size,
        class_names_written=bool(metadata.class_names) and out.suffix == SUFFIX,
    )


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names of a text file with one a line, in the order of the outputs; `imagenet` for ImageNet-1k's.

    Raises:
        WeightsError: the file cannot be read, a line between names is empty, or a name stands there twice.
    """
    if file == "imagenet":
        from iformer.models.weights.hub import imagenet_class_names  # deferred: it needs timm

        return imagenet_class_names()
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WeightsError(f"class names cannot be read from {file}: {reason}") from error
    names = tuple(line.strip() for line in lines)
    empty = [number for number, name in enumerate(names, start=1) if not name]
    if empty or not names:
        raise WeightsError(f"{file}: line {empty[0] if empty else 1} is empty; give one class name a line")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WeightsError(f"{file}: class names have to differ; there more than once: {listed(twice)}")
    return names


def _check_out(out: Path, to: Format, *, overwrite: bool) -> None:
    suffixes = {"iformer": (SUFFIX,), "timm": (SUFFIX, *PICKLE_SUFFIXES), "authors": PICKLE_SUFFIXES}[to]
    if out.suffix not in suffixes:
        raise WeightsError(f"{out}: a file for {to} ends in {' or '.join(suffixes)}")
    if os.path.lexists(out) and not overwrite:
        raise WeightsError(f"{out} exists; pass --overwrite to replace it")


def _with_source(metadata: Metadata, weights: Weights, source: Path) -> Metadata:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"source_file": source.name, "source_format": weights.format, "source_sha256": digest}
    return replace(metadata, provenance={**metadata.provenance, **origin})


def _write_foreign(
    out: Path,
    state_dict: Mapping[str, Tensor],
    config: NetworkConfig,
    metadata: Metadata,
    to: Foreign,
    dtype: torch.dtype | None,
) -> None:
    if variant_name(config) is None:
        raise WeightsError(f"{config.name} is none of the sizes that {to}'s code can build; keep it in our format")
    theirs = to_timm(state_dict, config) if to == "timm" else to_authors(state_dict, config)
    tensors = stored_tensors(theirs, dtype)
    header = header_of(config, metadata, source=str(out))
    if out.suffix == SUFFIX:
        # timm reads the tensors only; our description travels with them and comes back
        write_bytes(out, serialize(tensors, {"format": "pt", **header}))
        return
    buffer = io.BytesIO()
    with contextlib.closing(buffer):
        torch.save(tensors if to == "timm" else {"model": tensors}, buffer)
        write_bytes(out, buffer.getvalue())
