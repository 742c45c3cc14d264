"""Recognise the key names and the size of an iFormer by its state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from iformer.config.network import AttentionConfig, NetworkConfig
from iformer.config.variants import DISTILLED_SUFFIX, VARIANTS, network_config
from iformer.errors import WeightsError, listed
from iformer.models.weights.checkpoint import Format, check_fit, shapes_of
from iformer.models.weights.dialects import DIALECTS, NETWORK_FORM, dialect_keys, dialect_shapes

MARKERS: dict[Format, str] = {
    "iformer": "stem.conv1.conv.weight",
    "timm": "stem.conv1.c.weight",
    "authors": "downsample_layers.0.0.c.weight",
}
"""Key of the first convolution's kernel in each format; every network has this key."""
_FOLDED = ("stem.conv1.weight", "downsample_layers.0.0.weight")


def recognise(state_dict: Mapping[str, Any]) -> Format:
    """Return the format whose key names a state dict has.

    Raises:
        WeightsError: the keys match no format; the message shows some of them.
    """
    for name, marker in MARKERS.items():
        if marker in state_dict:
            return name
    if any(str(key).endswith(_FOLDED) for key in state_dict):
        raise WeightsError("it holds a folded (fused) network; give the weights it was made from")
    raise WeightsError(
        f"it holds no iFormer weights (no {', '.join(MARKERS.values())}); "
        f"its {len(state_dict)} keys are {listed([str(key) for key in state_dict], limit=10) or 'none'}"
    )


def recognise_network(state_dict: Mapping[str, Tensor], source: str = "state dict") -> NetworkConfig:
    """Return the config of a size in the table of variants, from a state dict in any of the three formats.

    Number of classes, input channels and distillation are those of the weights.

    Raises:
        WeightsError: the weights fit no size; the message lists the keys that do not fit the nearest size.
    """
    format_ = recognise(state_dict)
    found = shapes_of(state_dict)
    options = _head_and_input(found, format_)
    rows = [_row(base, distillation=options["distillation"]).with_options(**options) for base in VARIANTS]
    for config in rows:
        # names first: shapes need a network to be built
        if dialect_keys(config, format_) == found.keys() and dialect_shapes(config, format_) == found:
            return config
    shapes_of_rows = [dialect_shapes(config, format_) for config in rows]
    matches = [sum(found.get(key) == shape for key, shape in shapes.items()) for shapes in shapes_of_rows]
    nearest = matches.index(max(matches))
    network = f"any size; the nearest is {rows[nearest].name}"
    check_fit(shapes_of_rows[nearest], found, source=source, network=network)
    raise AssertionError("unreachable: shapes that differ do not fit")


def variant_name(config: NetworkConfig) -> str | None:
    """Return the name of the size that `config` matches, or None if it matches none.

    Classes, input channels and stochastic depth are not compared. A config with distillation has a distilled name.
    """
    rows = (_row(base, distillation=config.distillation) for base in VARIANTS)
    return next((row.name for row in rows if not differences(row, config)), None)


def differences(a: NetworkConfig, b: NetworkConfig) -> list[str]:
    """Return the config fields that make two backbones' weights incompatible."""
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


def _row(base: str, *, distillation: bool) -> NetworkConfig:
    return network_config(base + DISTILLED_SUFFIX if distillation else base)


def _head_and_input(found: Mapping[str, tuple[int, ...]], format_: Format) -> dict[str, Any]:
    if format_ == "iformer":
        classifier, distilled, weight = "head.classifier", "head.distilled", "linear.weight"
    else:
        classifier, distilled, weight = DIALECTS[format_].classifier, DIALECTS[format_].distilled, "l.weight"
    stem = found[MARKERS[format_]]
    linear = found.get(f"{classifier}.{weight}", ())
    return {
        "in_chans": max(stem[1], 1) if len(stem) == 4 else 3,
        "num_classes": linear[0] if len(linear) == 2 else 0,
        "distillation": f"{distilled}.{weight}" in found,
    }
