"""The attention designs for large images: which stages use which windows (Tables 16 and 17). No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from iformer.config.network import NetworkConfig, WindowConfig
from iformer.errors import ConfigError

DESIGNS = ("shma", "hybrid", "chunk_hybrid")
"""The designs of Table 16: no windows; windows; windows that are cut and joined in groups of channels."""
PRESETS = ("released", "paper")
"""Settings of windows: as in the authors' detection and segmentation networks, or as in the paper's text."""
CHANNEL_CHUNKS = 16
"""Number of channel groups that Chunk Hybrid SHMA cuts and joins one after another."""

_RELEASED_GLOBAL_BLOCKS = {"iformer_m": 0, "iformer_l": 1, "iformer_l2": 1}
"""Number of attention blocks in stage 3 that see the whole map, for each released downstream network."""


WINDOW_OPTIONS = tuple(field.name for field in fields(WindowConfig))


def with_design(
    network: NetworkConfig,
    design: str,
    *,
    preset: str | None = None,
    windowed_stages: Sequence[int] | None = None,
    **options: Any,
) -> NetworkConfig:
    """Return a network with one of the attention designs. Names and shapes of its weights do not change.

    Args:
        network: any network; windows that it already has are replaced.
        design: one of `DESIGNS`.
        preset: one of `PRESETS`. None: "released" if the authors released such a network, else "paper".
        windowed_stages: numbers of the stages with windows (1 to 4), instead of the preset's.
        options: fields of `WindowConfig`, instead of the preset's.

    Raises:
        ConfigError: the design, preset, stage or option does not exist, or not for this network.
    """
    if design not in DESIGNS:
        raise ConfigError(f"attention is {design!r}; expected one of {', '.join(map(repr, DESIGNS))}")
    if design == "shma":
        given = [name for name, value in (("preset", preset), ("windowed_stages", windowed_stages)) if value]
        if given or options:
            raise ConfigError(f"attention 'shma' has no windows; leave out {', '.join([*given, *options])}")
        return _with_windows(network, {})
    by_stage = _preset(network, preset)
    if windowed_stages is not None:
        template = next(iter(by_stage.values()), WindowConfig())
        by_stage = {stage: by_stage.get(stage, template) for stage in windowed_stages}
    if design == "hybrid" and "channel_chunks" in options:
        raise ConfigError("attention 'hybrid' has no channel_chunks; leave it out or use 'chunk_hybrid'")
    chunks = {"channel_chunks": CHANNEL_CHUNKS} if design == "chunk_hybrid" else {}
    return _with_windows(
        network, {stage: replace(windows, **(chunks | options)) for stage, windows in by_stage.items()}
    )


def design_of(network: NetworkConfig) -> str:
    """Return the attention design of a network, one of `DESIGNS`."""
    windows = [stage.windows for stage in network.stages if stage.windows is not None]
    if not windows:
        return "shma"
    return "chunk_hybrid" if any(window.channel_chunks > 1 for window in windows) else "hybrid"


def _preset(network: NetworkConfig, name: str | None) -> dict[int, WindowConfig]:
    """Return the windows of a preset by stage number."""
    base = network.name.removesuffix("_distilled")
    if name is None:
        name = "released" if base in _RELEASED_GLOBAL_BLOCKS else "paper"
    if name == "released":
        if base not in _RELEASED_GLOBAL_BLOCKS:
            raise ConfigError(
                f"windows 'released' exist for {', '.join(_RELEASED_GLOBAL_BLOCKS)} only; "
                f"use 'paper' for {network.name}"
            )
        return {3: WindowConfig(global_blocks=_RELEASED_GLOBAL_BLOCKS[base])}
    if name != "paper":
        raise ConfigError(f"windows are {name!r}; expected one of {', '.join(map(repr, PRESETS))}")
    return {
        number: WindowConfig(global_blocks=1)
        for number, stage in enumerate(network.stages, start=1)
        if "attention" in stage.blocks
    }


def _with_windows(network: NetworkConfig, by_stage: Mapping[int, WindowConfig]) -> NetworkConfig:
    missing = [number for number in by_stage if not 1 <= number <= len(network.stages)]
    if missing:
        raise ConfigError(f"windowed_stages has {missing[0]}; expected stages from 1 to {len(network.stages)}")
    return network.with_options(
        stages=tuple(
            replace(stage, windows=by_stage.get(number)) for number, stage in enumerate(network.stages, start=1)
        )
    )
