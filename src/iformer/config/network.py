"""What a network is: stages of convolution and attention blocks, with nothing left to the model's choice.

Checked once, where it is built; models trust it. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.operators import ATTENTION_OPERATORS, OPERATOR_OPTIONS
from iformer.config.windows import WindowConfig

BlockKind = Literal["conv", "attention"]
STRIDES = (4, 8, 16, 32)
"""Strides of the four stages' outputs against the input image (paper, Table 15)."""

MIN_INPUT_SIZE = 32
"""The smallest side of an input image: one pixel of the last stage."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The attention of a stage, by default single-head modulation attention (SHMA), and its feed-forward network.

    Source: Section 3.3, equations 2 and 3, and Table 15. An option that the operator does not read has to
    keep its default.
    """

    operator: str = "shma"
    """A name of `ATTENTION_OPERATORS`: "shma", "sha", "mha" or "shvit"."""
    reduction: int = 2
    """R: queries and keys have `channels // reduction` channels."""
    modulation: Literal["value", "output"] = "value"
    """Where the value branch has its sigmoid: on v before attention, as in the released networks
    ("value"), or on the attention's output, as equation 3 is printed ("output")."""
    activation: Literal["sigmoid", "silu"] = "sigmoid"
    """The activation of SHMA's value and gate (Table 6)."""
    norm_placement: Literal["post_bn", "pre_ln"] = "post_bn"
    """SHMA's norms: a batch norm behind each of its convolutions, or one layer norm in front (Table 6)."""
    head_dim: int = 32
    """Channels of one head's queries and keys, for "mha" (Table 1)."""
    channel_share: float = 1.0
    """The share of the channels that "shvit" attends to; the rest passes by (Table 14)."""
    concat: bool = False
    """Whether "shvit" gives its projection the channels that passed by too (Table 14)."""
    ffn_expansion_ratio: float = 3.0
    """Hidden channels of the feed-forward network over its input channels."""
    position_encoding: bool = True
    """A 3x3 depthwise convolution with a residual (CPE) before the attention."""

    def __post_init__(self) -> None:
        check_types(self)
        check(
            self.operator in ATTENTION_OPERATORS,
            self,
            "operator",
            "one of " + ", ".join(map(repr, ATTENTION_OPERATORS)),
        )
        check(self.reduction >= 1, self, "reduction", "a whole number of 1 or more")
        check(self.head_dim >= 1, self, "head_dim", "a whole number of 1 or more")
        check(0 < self.channel_share <= 1, self, "channel_share", "a number above 0, at most 1")
        check(self.ffn_expansion_ratio > 0, self, "ffn_expansion_ratio", "a number above 0")
        self._check_unread_options()

    def attended_channels(self, channels: int) -> int:
        """How many of a stage's channels the attention sees."""
        return round(channels * self.channel_share)

    def _check_unread_options(self) -> None:
        """An option that has no effect would be a network other than the one its config tells of."""
        read = ATTENTION_OPERATORS[self.operator].options
        for field in fields(self):
            check(
                getattr(self, field.name) == field.default
                or field.name in read
                or field.name not in OPERATOR_OPTIONS,
                self,
                field.name,
                f"its default, {field.default!r}: the operator '{self.operator}' has no such option",
            )


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One resolution of the network: a run of blocks in order."""

    channels: int
    pattern: tuple[tuple[BlockKind, int], ...]
    """Blocks in order, as (kind, count): `(("conv", 9), ("attention", 3), ("conv", 1))`."""
    conv_kernel_size: int = 7
    conv_expansion_ratio: float = 4.0
    expanded_kernel_size: int | None = None
    """Kernel of a further depthwise convolution on the expanded channels of every conv block and feed-forward
    network (Table 11); None: no such convolution."""
    attention: AttentionConfig = AttentionConfig()
    windows: WindowConfig | None = None
    """Windows for the attention on large maps (Table 16); None: each token attends to the whole map."""

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
            self.expanded_kernel_size is None
            or (self.expanded_kernel_size >= 1 and self.expanded_kernel_size % 2 == 1),
            self,
            "expanded_kernel_size",
            "nothing or an odd whole number",
        )
        if "attention" in self.blocks:
            self._check_attention_channels()
        self._check_windows()

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        check("attention" in self.blocks, self, "windows", "nothing in a stage without attention blocks")
        windowed = [name for name, row in ATTENTION_OPERATORS.items() if row.windows]
        check(
            self.attention.operator in windowed,
            self,
            "windows",
            f"nothing: the attention operator '{self.attention.operator}' takes none (those that do: "
            f"{', '.join(windowed)})",
        )
        check(
            self.windows.channel_chunks <= self.channels,
            self,
            "windows",
            f"at most as many channel_chunks as channels ({self.channels})",
        )

    def _check_attention_channels(self) -> None:
        attention = self.attention
        check(
            self.channels % attention.reduction == 0,
            self,
            "channels",
            f"a multiple of attention.reduction ({attention.reduction})",
        )
        attended = attention.attended_channels(self.channels)
        check(
            attended == self.channels * attention.channel_share
            and attended >= 1
            and attended % attention.reduction == 0,
            self,
            "channels",
            f"a number of which attention.channel_share ({attention.channel_share:g}) is a multiple of "
            f"attention.reduction ({attention.reduction})",
        )
        check(
            "head_dim" not in ATTENTION_OPERATORS[attention.operator].options
            or self.channels // attention.reduction % attention.head_dim == 0,
            self,
            "channels",
            f"a multiple of attention.reduction x attention.head_dim "
            f"({attention.reduction} x {attention.head_dim})",
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
    stem: Literal["conv", "patch"] = "conv"
    """Three early convolutions, or one 4x4 convolution of stride 4 (Figure 2, "conv stem")."""
    stem_kernel_size: int = 5
    """Kernel of the two strided convolutions of the stem "conv" (Figure 2, "kernel size")."""
    downsample: Literal["overlapping", "patch"] = "overlapping"
    """Between stages a 3x3 convolution of stride 2, or a 2x2 one, whose windows do not overlap."""
    norm: Literal["batch", "layer"] = "batch"
    """A batch norm behind every convolution, or ConvNeXt's layer norms (Figure 2, "batch norm")."""

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
        check(
            self.stem_kernel_size >= 1 and self.stem_kernel_size % 2 == 1,
            self,
            "stem_kernel_size",
            "an odd whole number",
        )
        check(
            self.norm == "batch" or not any("attention" in stage.blocks for stage in self.stages),
            self,
            "norm",
            "'batch' in a network with attention blocks",
        )

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
