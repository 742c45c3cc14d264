"""Key names of timm and of the authors, and how they map to ours.

Foreign key names are derived from the config, so any stage pattern can be converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from iformer.config.network import OPERATOR_OPTIONS, AttentionConfig, NetworkConfig
from iformer.errors import WeightsError
from iformer.models.weights.checkpoint import Format, check_fit, expected_shapes, shapes_of

Foreign = Literal["timm", "authors"]
POSSESSIVE: dict[Foreign, str] = {"timm": "timm's", "authors": "the authors'"}
"""Whose code and networks these are, for messages."""

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
NETWORK_FORM = ("stem", "stem_kernel_size", "downsample", "norm")
"""Network options that timm and the authors implement only at their default."""
_ATTENTION_FORM = (
    "operator",
    *(field.name for field in fields(AttentionConfig) if field.name in OPERATOR_OPTIONS),
)
"""Attention options that timm and the authors implement only at their default."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The names of a network's modules in another code, with the fields `{stage}` and `{index}`.

    The index of a block counts conv blocks, position encodings, SHMAs and FFNs one by one.
    """

    stem: tuple[str, str, str]
    downsample: str
    block: str
    token_mixer: str
    channel_mixer: str
    inner: str
    """Name of the module inside a residual block whose output is scaled and added."""
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


def key_map(config: NetworkConfig, dialect: Foreign) -> dict[str, str]:
    """Return a map from our key to the dialect's key for every tensor of the network."""
    return {
        f"{ours}.{our_tensor}": f"{theirs}.{their_tensor}"
        for ours, theirs, tensors in _parts(config, DIALECTS[dialect])
        for our_tensor, their_tensor in tensors.items()
    }


def from_timm(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Convert a state dict from timm's key names to this package's; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen; the message lists such keys by timm's names.
    """
    return from_foreign(state_dict, config, "timm")


def from_authors(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Convert a state dict from the authors' key names to this package's; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen; the message lists such keys by the authors' names.
    """
    return from_foreign(state_dict, config, "authors")


def to_timm(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Convert a state dict from this package's key names to timm's; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen, or timm cannot compute the network, for example
            the modulation of equation 3 or another attention operator.
    """
    return _to_foreign(state_dict, config, "timm")


def to_authors(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Convert a state dict from this package's key names to the authors'; no value is changed.

    Raises:
        WeightsError: a key is missing, extra or misshapen, or the authors' code cannot compute the network.
    """
    return _to_foreign(state_dict, config, "authors")


def from_foreign(
    state_dict: Mapping[str, Tensor], config: NetworkConfig, dialect: Foreign, source: str = ""
) -> dict[str, Tensor]:
    """Convert a state dict from a dialect's key names to this package's; `source` names the file in errors.

    Raises:
        WeightsError: a key is missing, extra or misshapen; the message lists such keys by the dialect's names.
    """
    check_fit(
        dialect_shapes(config, dialect),
        shapes_of(state_dict),
        source=source or f"{dialect} state dict",
        network=config.name,
    )
    return {
        ours: state_dict[theirs].flatten() if _is_gamma(ours) else state_dict[theirs]
        for ours, theirs in key_map(config, dialect).items()
    }


def _to_foreign(state_dict: Mapping[str, Tensor], config: NetworkConfig, dialect: Foreign) -> dict[str, Tensor]:
    foreign = _only_ours(config)
    if foreign:
        raise WeightsError(
            f"{config.name} has {', '.join(foreign)}, which {POSSESSIVE[dialect]} networks cannot compute; "
            "keep it in our format"
        )
    check_fit(expected_shapes(config), shapes_of(state_dict), source="state dict", network=config.name)
    return {
        theirs: state_dict[ours][None, :, None, None] if _is_gamma(ours) else state_dict[ours]
        for ours, theirs in key_map(config, dialect).items()
    }


def _only_ours(config: NetworkConfig) -> list[str]:
    """Return the options that timm and the authors do not have, as "name 'value'"."""
    found = _changed(config, NETWORK_FORM)
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


def dialect_keys(config: NetworkConfig, format_: Format) -> Set[str]:
    """Return the keys of a network's state dict in a format."""
    return key_map(config, "timm").keys() if format_ == "iformer" else set(key_map(config, format_).values())


def dialect_shapes(config: NetworkConfig, format_: Format) -> Mapping[str, tuple[int, ...]]:
    """Return key and shape of each tensor of a network's state dict in a format."""
    shapes = expected_shapes(config)
    if format_ == "iformer":
        return shapes
    return {
        theirs: (1, *shapes[ours], 1, 1) if _is_gamma(ours) else shapes[ours]
        for ours, theirs in key_map(config, format_).items()
    }


def _is_gamma(ours: str) -> bool:
    return ours.endswith(".gamma")


def _parts(config: NetworkConfig, dialect: Dialect) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (our prefix, their prefix, our tensor name -> their tensor name) for each module with weights."""
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
    """A block as the other codes count blocks: a residual sum around some ConvNorms."""

    mixer: str
    convs: dict[str, str]
    residual: str | None
    """Our name of the module with the block's layer scale; None if the block has no layer scale."""


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
