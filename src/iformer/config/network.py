"""What a network is: stages of convolution and attention blocks, with nothing left to the model's choice.

Checked once, where it is built; models trust it. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from iformer.config.checking import check, check_types, from_plain, to_plain

BlockKind = Literal["conv", "attention"]
STRIDES = (4, 8, 16, 32)
"""Strides of the four stages' outputs against the input image (paper, Table 15)."""

MIN_INPUT_SIZE = 32
"""The smallest side of an input image: one pixel of the last stage."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Single-head modulation attention (SHMA) and the feed-forward network behind it.

    Source: Section 3.3, equations 2 and 3, and Table 15.
    """

    reduction: int = 2
    """R: queries and keys have `channels // reduction` channels."""
    modulation: Literal["value", "output"] = "value"
    """Where the value branch has its sigmoid: on v before attention, as in the released networks
    ("value"), or on the attention's output, as equation 3 is printed ("output")."""
    ffn_expansion_ratio: float = 3.0
    """Hidden channels of the feed-forward network over its input channels."""
    position_encoding: bool = True
    """A 3x3 depthwise convolution with a residual (CPE) before the attention."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.reduction >= 1, self, "reduction", "a whole number of 1 or more")
        check(self.ffn_expansion_ratio > 0, self, "ffn_expansion_ratio", "a number above 0")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One resolution of the network: a run of blocks in order."""

    channels: int
    pattern: tuple[tuple[BlockKind, int], ...]
    """Blocks in order, as (kind, count): `(("conv", 9), ("attention", 3), ("conv", 1))`."""
    conv_kernel_size: int = 7
    conv_expansion_ratio: float = 4.0
    attention: AttentionConfig = AttentionConfig()

    def __post_init__(self) -> None:
        check_types(self)
        check(self.channels >= 1, self, "channels", "a whole number of 1 or more")
        check(
            all(count >= 0 for _, count in self.pattern) and self.depth > 0,
            self,
            "pattern",
            "pairs of block kind and count, with at least one block in all",
        )
        check(
            self.conv_kernel_size >= 1 and self.conv_kernel_size % 2 == 1,
            self,
            "conv_kernel_size",
            "an odd whole number",
        )
        check(self.conv_expansion_ratio > 0, self, "conv_expansion_ratio", "a number above 0")
        check(
            "attention" not in self.blocks or self.channels % self.attention.reduction == 0,
            self,
            "channels",
            f"a multiple of attention.reduction ({self.attention.reduction})",
        )

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """The kind of each block, in order."""
        return tuple(kind for kind, count in self.pattern for _ in range(count))

    @property
    def depth(self) -> int:
        """How many blocks the stage has."""
        return sum(count for _, count in self.pattern)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A whole network: a stride-4 stem, four stages and, with classes, a classifier head."""

    name: str
    stages: tuple[StageConfig, ...]
    in_chans: int = 3
    num_classes: int = 1000
    """0 leaves the classifier out: the network then returns pooled features."""
    distillation: bool = False
    """Two classifiers: training returns both outputs, inference their mean."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the deepest residual; it grows linearly from 0 over the depth."""
    layer_scale_init: float | None = None
    """Initial value of a learned per-channel factor on each residual but the CPE's; None: no factor."""

    def __post_init__(self) -> None:
        check_types(self)
        check(len(self.stages) == len(STRIDES), self, "stages", f"{len(STRIDES)} stages")
        check(self.in_chans >= 1, self, "in_chans", "a whole number of 1 or more")
        check(self.num_classes >= 0, self, "num_classes", "a whole number of 0 or more")
        check(0.0 <= self.drop_path_rate < 1.0, self, "drop_path_rate", "a number from 0 up to, not with, 1")
        check(
            self.layer_scale_init is None or self.layer_scale_init > 0,
            self,
            "layer_scale_init",
            "nothing or a number above 0",
        )
        check(self.stages[0].channels % 2 == 0, self, "stages", "an even number of channels in the first stage")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four feature maps."""
        return tuple(stage.channels for stage in self.stages)

    def with_options(self, **options: Any) -> NetworkConfig:
        """A copy with some fields changed, checked again."""
        return replace(self, **options)

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for YAML, JSON and checkpoint metadata."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)
