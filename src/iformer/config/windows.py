"""The attention designs for large images: which stages attend in windows, and how (Tables 16 and 17). No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from iformer.config.checking import check, check_types
from iformer.errors import ConfigError

if TYPE_CHECKING:
    from iformer.config.network import NetworkConfig

DESIGNS = ("shma", "hybrid", "chunk_hybrid")
"""The designs of Table 16: no windows; windows; windows that are cut and joined by groups of channels."""
PRESETS = ("released", "paper")
"""Settings of the authors' networks for detection and segmentation, and those that the paper's text describes."""
CHANNEL_CHUNKS = 16
"""Groups of channels of Chunk Hybrid SHMA."""

_RELEASED_GLOBAL_BLOCKS = {"iformer_m": 0, "iformer_l": 1, "iformer_l2": 1}
"""Attention blocks of stage 3 that see the whole map, in the released downstream networks."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a stage's attention blocks see a large feature map: in windows, but for the last blocks.

    The map is cut once, in the first block behind its position encoding, and put together again once. What
    lies between runs in windows: each token attends to its window, and position encodings are padded with
    zeros at each window's edge. Sides that `window_size` does not divide are padded with zeros at the right and
    bottom. A map of one window or less stays whole.
    """

    window_size: int = 16
    """Side of a window, in tokens."""
    channel_chunks: int = 1
    """Groups of channels that are cut and joined one after another; 1: all at once. Changes no value."""
    global_blocks: int = 1
    """Attention blocks at the stage's end that see the whole map."""
    padded_tokens: Literal["attended", "masked"] = "attended"
    """Whether padded tokens take part as the released networks have it ("attended"), or no token of the map
    depends on them ("masked")."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.window_size >= 2, self, "window_size", "a whole number of 2 or more")
        check(self.channel_chunks >= 1, self, "channel_chunks", "a whole number of 1 or more")
        check(self.global_blocks >= 0, self, "global_blocks", "a whole number of 0 or more")


WINDOW_OPTIONS = tuple(field.name for field in fields(WindowConfig))


def with_design(
    network: NetworkConfig,
    design: str,
    *,
    preset: str | None = None,
    windowed_stages: Sequence[int] | None = None,
    **options: Any,
) -> NetworkConfig:
    """A network with one of the attention designs; its weights and their names stay the same.

    Args:
        network: any network; windows it has already are replaced.
        design: one of `DESIGNS`.
        preset: one of `PRESETS`; None: "released" where there is such a network of this size, else "paper".
        windowed_stages: the stages with windows (1 to 4), in the place of the preset's.
        options: fields of `WindowConfig`, in the place of the preset's.

    Raises:
        ConfigError: the design, preset, stage or an option does not exist, or is none of this network's.
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
        raise ConfigError("attention 'hybrid' has no channel_chunks; leave it out, or take 'chunk_hybrid'")
    chunks = {"channel_chunks": CHANNEL_CHUNKS} if design == "chunk_hybrid" else {}
    return _with_windows(
        network, {stage: replace(windows, **(chunks | options)) for stage, windows in by_stage.items()}
    )


def design_of(network: NetworkConfig) -> str:
    """The attention design of a network, one of `DESIGNS`."""
    windows = [stage.windows for stage in network.stages if stage.windows is not None]
    if not windows:
        return "shma"
    return "chunk_hybrid" if any(window.channel_chunks > 1 for window in windows) else "hybrid"


def _preset(network: NetworkConfig, name: str | None) -> dict[int, WindowConfig]:
    """Stage number to its windows."""
    base = network.name.removesuffix("_distilled")
    if name is None:
        name = "released" if base in _RELEASED_GLOBAL_BLOCKS else "paper"
    if name == "released":
        if base not in _RELEASED_GLOBAL_BLOCKS:
            raise ConfigError(
                f"windows 'released' exist for {', '.join(_RELEASED_GLOBAL_BLOCKS)} only; "
                f"for {network.name} take 'paper'"
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
