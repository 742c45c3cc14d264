"""Weights between our key names, timm's and the authors'.

The key names of the other two are derived from a network's config, so that any stage pattern converts.
Files of theirs may be pickles: they are read without running code, by a narrow allow-list.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from iformer.config.metadata import Metadata
from iformer.config.network import AttentionConfig, NetworkConfig
from iformer.config.operators import OPERATOR_OPTIONS
from iformer.config.variants import list_models, network_config
from iformer.errors import UserError, WeightsError
from iformer.files import write_bytes
from iformer.models.weights import (
    FORMAT,
    SUFFIX,
    Format,
    Weights,
    check_fit,
    expected_shapes,
    header_of,
    listed,
    metadata_with,
    one_line,
    open_safetensors,
    parse_network,
    read_checkpoint,
    stored_tensors,
    unreadable,
    write_checkpoint,
)

FORMATS: tuple[Format, ...] = ("iformer", "timm", "authors")
ENTRIES = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Names under which training checkpoints keep weights, in the order they are looked for."""
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")

Foreign = Literal["timm", "authors"]

_CONV_NORM = {
    "conv.weight": "c.weight",
    "norm.weight": "bn.weight",
    "norm.bias": "bn.bias",
    "norm.running_mean": "bn.running_mean",
    "norm.running_var": "bn.running_var",
    "norm.num_batches_tracked": "bn.num_batches_tracked",
}
_NORM_LINEAR = {
    "linear.weight": "l.weight",
    "linear.bias": "l.bias",
    **{ours: theirs for ours, theirs in _CONV_NORM.items() if ours.startswith("norm.")},
}
_GAMMA = {"gamma": "gamma"}
_NETWORK_FORM = ("stem", "stem_kernel_size", "downsample", "norm")
_ATTENTION_FORM = (
    "operator",
    *(field.name for field in fields(AttentionConfig) if field.name in OPERATOR_OPTIONS),
)
"""Options whose default is what the released codes compute; they know no other."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How another code names the parts of a network; `{stage}` and `{index}` are filled in.

    A block's index counts conv blocks, position encodings, SHMAs and FFNs one by one.
    """

    stem: tuple[str, str, str]
    downsample: str
    block: str
    token_mixer: str
    channel_mixer: str
    inner: str
    """The part of a residual block that is not its layer scale."""
    classifier: str
    distilled: str


DIALECTS: dict[str, Dialect] = {
    "timm": Dialect(
        stem=("stem.conv1", "stem.conv2", "stem.conv3"),
        downsample="stages.{stage}.downsample",
        block="stages.{stage}.blocks.{index}",
        token_mixer="mixer",
        channel_mixer="mixer",
        inner="module",
        classifier="head.head",
        distilled="head.head_dist",
    ),
    "authors": Dialect(
        stem=(
            "downsample_layers.0.0",
            "downsample_layers.0.2.conv_exp_bn1",
            "downsample_layers.0.2.conv_pwl_bn2",
        ),
        downsample="downsample_layers.{stage}.0",
        block="stages.{stage}.{index}.block",
        token_mixer="token_channel_mixer",
        channel_mixer="channel_mixer",
        inner="m",
        classifier="classifier.classifier",
        distilled="classifier.classifier_dist",
    ),
}

# ------------------------------------------------------------------------------------- key names


def key_map(config: NetworkConfig, dialect: Foreign) -> dict[str, str]:
    """Our key to theirs, for every tensor of the network."""
    return {
        f"{ours}.{our_tensor}": f"{theirs}.{their_tensor}"
        for ours, theirs, tensors in _parts(config, DIALECTS[dialect])
        for our_tensor, their_tensor in tensors.items()
    }


def from_timm(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """timm's state dict of a network by our key names; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen; they are listed by timm's names.
    """
    return _from(state_dict, config, "timm")


def from_authors(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """The authors' state dict of a network by our key names; see `from_timm`."""
    return _from(state_dict, config, "authors")


def to_timm(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Our state dict of a network by timm's key names; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen, or the network has something that the other codes
            cannot compute, such as the modulation of equation 3 or another attention operator.
    """
    return _to(state_dict, config, "timm")


def to_authors(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Our state dict of a network by the authors' key names; see `to_timm`."""
    return _to(state_dict, config, "authors")


def _from(
    state_dict: Mapping[str, Tensor], config: NetworkConfig, dialect: Foreign, source: str = ""
) -> dict[str, Tensor]:
    ours_to_theirs = key_map(config, dialect)
    check_fit(
        _their_shapes(config, dialect),
        {key: tuple(value.shape) for key, value in state_dict.items()},
        source=source or f"{dialect} state dict",
        network=config.name,
    )
    return {
        ours: state_dict[theirs].flatten() if _is_gamma(ours) else state_dict[theirs]
        for ours, theirs in ours_to_theirs.items()
    }


def _to(state_dict: Mapping[str, Tensor], config: NetworkConfig, dialect: Foreign) -> dict[str, Tensor]:
    foreign = _only_ours(config)
    if foreign:
        raise WeightsError(
            f"{config.name} has {', '.join(foreign)}, which {dialect}'s networks cannot compute; "
            "keep it in our format"
        )
    check_fit(
        expected_shapes(config),
        {key: tuple(value.shape) for key, value in state_dict.items()},
        source="state dict",
        network=config.name,
    )
    return {
        theirs: state_dict[ours][None, :, None, None] if _is_gamma(ours) else state_dict[ours]
        for ours, theirs in key_map(config, dialect).items()
    }


def _only_ours(config: NetworkConfig) -> list[str]:
    """The options that the released codes do not have, as "name 'value'"."""
    found = _changed(config, _NETWORK_FORM)
    for stage in config.stages:
        found += _changed(stage, ("expanded_kernel_size",))
        if stage.windows is not None:
            found.append("windows")
        if "attention" in stage.blocks:
            found += _changed(stage.attention, _ATTENTION_FORM)
    return list(dict.fromkeys(found))


def _changed(config: Any, names: tuple[str, ...]) -> list[str]:
    defaults = {field.name: field.default for field in fields(config)}
    return [f"{name} {getattr(config, name)!r}" for name in names if getattr(config, name) != defaults[name]]


def _their_shapes(config: NetworkConfig, dialect: Foreign) -> dict[str, tuple[int, ...]]:
    shapes = expected_shapes(config)
    return {
        theirs: (1, *shapes[ours], 1, 1) if _is_gamma(ours) else shapes[ours]
        for ours, theirs in key_map(config, dialect).items()
    }


def _keys(config: NetworkConfig, named: Format) -> Set[str]:
    if named == "iformer":
        return key_map(config, "timm").keys()
    return set(key_map(config, named).values())


def _shapes(config: NetworkConfig, named: Format) -> dict[str, tuple[int, ...]]:
    return expected_shapes(config) if named == "iformer" else _their_shapes(config, named)


def _is_gamma(ours: str) -> bool:
    return ours.endswith(".gamma")


def _parts(config: NetworkConfig, dialect: Dialect) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(our prefix, their prefix, names of the tensors behind them) for each part that has weights."""
    for number, theirs in enumerate(dialect.stem, start=1):
        yield f"stem.conv{number}", theirs, _CONV_NORM
    layer_scale = config.layer_scale_init is not None
    for stage_index, stage in enumerate(config.stages):
        if stage_index > 0:
            theirs = dialect.downsample.format(stage=stage_index)
            yield f"stages.{stage_index}.downsample", theirs, _CONV_NORM
        index = 0
        for block_index, kind in enumerate(stage.blocks):
            ours = f"stages.{stage_index}.blocks.{block_index}"
            units = (
                _conv_units(dialect)
                if kind == "conv"
                else _attention_units(dialect, position=stage.attention.position_encoding)
            )
            for unit in units:
                theirs = dialect.block.format(stage=stage_index, index=index)
                for our_name, their_name in unit.convs.items():
                    yield f"{ours}.{our_name}", f"{theirs}.{unit.mixer}.{their_name}", _CONV_NORM
                if layer_scale and unit.residual is not None:
                    yield f"{ours}.{unit.residual}", f"{theirs}.{unit.mixer}", _GAMMA
                index += 1
    if config.num_classes > 0:
        yield "head.classifier", dialect.classifier, _NORM_LINEAR
        if config.distillation:
            yield "head.distilled", dialect.distilled, _NORM_LINEAR


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """What the other codes count as one block: a residual sum around some ConvNorms."""

    mixer: str
    convs: dict[str, str]
    residual: str | None
    """Where we keep its layer scale; None where it has none."""


def _conv_units(dialect: Dialect) -> list[_Unit]:
    inner = dialect.inner
    convs = {"depthwise": f"{inner}.0", "expand": f"{inner}.1", "project": f"{inner}.3"}
    return [_Unit(mixer=dialect.token_mixer, convs=convs, residual="residual")]


def _attention_units(dialect: Dialect, *, position: bool) -> list[_Unit]:
    inner = dialect.inner
    units = []
    if position:
        units.append(_Unit(mixer="cpe", convs={"position.depthwise": inner}, residual=None))
    attention = {f"attention.{name}": f"{inner}.{name}" for name in ("q", "k", "v_gate", "proj")}
    units.append(_Unit(mixer=dialect.token_mixer, convs=attention, residual="attention.residual"))
    ffn = {"ffn.expand": f"{inner}.0", "ffn.project": f"{inner}.2"}
    units.append(_Unit(mixer=dialect.channel_mixer, convs=ffn, residual="ffn.residual"))
    return units


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
        if _keys(config, named) == found.keys() and _shapes(config, named) == found:
            return config
    shapes_of_rows = [_shapes(config, named) for config in rows]
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
    found += [name for name in _NETWORK_FORM if getattr(a, name) != getattr(b, name)]
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
            ...); None takes the first of `ENTRIES` that is there.

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
    ours = state_dict if named == "iformer" else _from(state_dict, config, named, source)
    return Weights(source=source, format=named, config=config, state_dict=ours, metadata=metadata)


def read_pickle(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict of a `torch.save` file; no code of the file's is run.

    Beside tensors and plain Python values only `argparse.Namespace` and NumPy scalars may be in it, as in
    the authors' released files; they are skipped, and not even built.

    Raises:
        WeightsError: it is truncated or damaged, of the format before PyTorch 1.6, or asks for anything else.
    """
    path = Path(path)
    _check_archive(path)
    with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED_GLOBALS]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            raise WeightsError(f"{path}: {_pickle_problem(path, error)}") from error
    return _plain_tensors(_state_dict_of(content, path, entry), path)


class _Ignored:
    """Stands for what the authors' files hold beside weights: takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


_IGNORED_GLOBALS = (
    "argparse.Namespace",
    "numpy.dtype",
    # NumPy 2 moved it; files name it as their writer's NumPy did
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def _check_archive(path: Path) -> None:
    """Refuse what `torch.save` does not write before anything is unpacked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not file.read(2) == b"PK":
            raise WeightsError(
                f"{path} is a pickle of the format before PyTorch 1.6, which is not read; "
                "load it where you trust it and save it again with torch.save"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged ({size} bytes; {one_line(error)}); download or copy it again"
        ) from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        raise WeightsError(
            f"{path} is a zip archive that torch.save did not write (its parts are compressed or overlap); "
            "it is not unpacked"
        )


def _pickle_problem(path: Path, error: Exception) -> str:
    try:
        asked_for = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        asked_for = []
    if asked_for or "Unsupported" in str(error):
        what = f" ({listed(sorted(asked_for))})" if asked_for else ""
        return (
            f"refused, nothing was run: its pickle asks for more than weights{what}; "
            "if you trust it, save its state dict alone with torch.save"
        )
    return f"truncated or damaged ({one_line(error)}); download or copy it again"


def _state_dict_of(content: Any, path: Path, entry: str | None) -> Mapping[Any, Any]:
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a state dict; found a {type(content).__name__}")
    if entry is None:
        entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), None)
        return content if entry is None else content[entry]
    chosen = content.get(entry)
    if not isinstance(chosen, dict):
        there = [name for name in content if isinstance(content[name], dict)]
        raise WeightsError(f"{path} has no state dict '{entry}'; it has {listed(list(map(str, there))) or 'none'}")
    return chosen


def _plain_tensors(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    wrong = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and _is_plain(value))]
    if wrong or not state_dict:
        raise WeightsError(
            f"{path}: expected a state dict of plain tensors; "
            + (f"these are not: {listed(wrong)}" if wrong else "it is empty")
        )
    return {str(key): value.detach() for key, value in state_dict.items()}


def _is_plain(value: Any) -> bool:
    """A dense CPU tensor whose storage holds all it claims: a small file cannot ask for much memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


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
        WeightsError: see `read_weights`; or it holds another size than `model`, `out` exists or cannot be
            written, the class names are not as many as the classes, or the target's code has no such network.
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
        from iformer.models.hub import imagenet_class_names  # deferred: it needs timm

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
