"""Config of a network: stages of convolution and attention blocks, and the table of attention operators.

Models take every choice from these configs. A config is checked once, when it is built; models rely on the check.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from iformer.config.checking import Config, Length, Range, ShareBelowOne, check

BlockKind = Literal["conv", "attention"]
STRIDES = (4, 8, 16, 32)
"""Strides of the four stages' outputs relative to the input image (paper, Table 15)."""

MIN_INPUT_SIZE = 32
"""Smallest side of an input image, in pixels; the last feature map then has a side of one pixel."""
MAX_INPUT_SIZE = 8192
"""Largest side of an input image, in pixels."""

Channels = Annotated[int, Range(1, 16_384)]
Pixels = Annotated[int, Range(MIN_INPUT_SIZE, MAX_INPUT_SIZE)]
Kernel = Annotated[int, Range(1, 63, step=2)]
Ratio = Annotated[float, Range(0, 64, above=True)]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One attention operator (`docs/extend/attention-operator.md` says how to add one)."""

    location: str
    """The operator's class, as `module:Class`; imported when a network with this operator is built."""
    options: tuple[str, ...] = ()
    """The fields of `AttentionConfig` that only this operator, or only a few operators, read."""
    windows: bool = False
    """Whether the operator's `forward` takes the windows of a strip (`iformer.layers.windows`)."""


ATTENTION_OPERATORS: dict[str, Operator] = {
    "shma": Operator(
        location="iformer.layers.attention:SHMA",
        options=("modulation", "activation", "norm_placement"),
        windows=True,
    ),
    "sha": Operator(location="iformer.layers.sha:SHA"),
    "mha": Operator(location="iformer.layers.mha:MHA", options=("head_dim",)),
    "shvit": Operator(location="iformer.layers.shvit:SHViTAttention", options=("channel_share", "concat")),
}

OPERATOR_OPTIONS = frozenset(option for row in ATTENTION_OPERATORS.values() for option in row.options)
"""Fields of `AttentionConfig` that not every operator reads."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    """The attention of a stage, by default single-head modulation attention (SHMA), and its feed-forward network.

    Source: section 3.3, equations 2 and 3, and Table 15. An option that the operator does not have must keep its
    default.
    """

    operator: str = "shma"
    """A name of `ATTENTION_OPERATORS`: "shma", "sha", "mha" or "shvit"."""
    reduction: Annotated[int, Range(1, 1024)] = 2
    """R: queries and keys have `channels // reduction` channels."""
    modulation: Literal["value", "output"] = "value"
    """Where SHMA applies the sigmoid of the value branch: to v before the attention, as the released networks do
    ("value"), or to the attention's output, as equation 3 is printed ("output")."""
    activation: Literal["sigmoid", "silu"] = "sigmoid"
    """The activation of SHMA's value and gate (Table 6)."""
    norm_placement: Literal["post_bn", "pre_ln"] = "post_bn"
    """SHMA's norms: a batch norm after each of its convolutions, or one layer norm before them (Table 6)."""
    head_dim: Annotated[int, Range(1, 1024)] = 32
    """Channels of one head's queries and keys, for "mha" (Table 1)."""
    channel_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    """The share of the channels that "shvit" attends to; the others bypass the attention (Table 14)."""
    concat: bool = False
    """Whether the projection of "shvit" also gets the channels that bypass the attention (Table 14)."""
    ffn_expansion_ratio: Ratio = 3.0
    """Hidden channels of the feed-forward network divided by its input channels."""
    position_encoding: bool = True
    """Apply a 3x3 depthwise convolution with a residual (CPE) before the attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.operator in ATTENTION_OPERATORS,
            self,
            "operator",
            "one of " + ", ".join(map(repr, ATTENTION_OPERATORS)),
        )
        self._check_unused_options()

    def attended_channels(self, channels: int) -> int:
        """Return the number of channels that the attention sees in a stage of `channels` channels."""
        return round(channels * self.channel_share)

    def _check_unused_options(self) -> None:
        """Refuse options without effect, so that different configs always describe different networks."""
        used = ATTENTION_OPERATORS[self.operator].options
        for field in fields(self):
            check(
                getattr(self, field.name) == field.default
                or field.name in used
                or field.name not in OPERATOR_OPTIONS,
                self,
                field.name,
                f"its default, {field.default!r}: the operator '{self.operator}' has no such option",
            )


@dataclass(frozen=True, kw_only=True)
class WindowConfig(Config):
    """Windowed attention of a stage on large feature maps. The last blocks can see the whole map.

    The map is cut into windows once, in the first block after its position encoding, and joined once. Between
    the two, each token attends to its window, and position encodings pad the edges of each window with zeros.
    Where `window_size` does not divide a side, zeros are added at the right and at the bottom. A map no larger
    than one window is not cut.
    """

    window_size: Annotated[int, Range(2, 1024)] = 16
    """Side of a window, in tokens."""
    channel_chunks: Annotated[int, Range(1, 1024)] = 1
    """Number of channel groups that are cut and joined one after another, with the same result. 1: all at once."""
    global_blocks: Annotated[int, Range(0, 1024)] = 1
    """Number of attention blocks at the end of the stage that see the whole map."""
    padded_tokens: Literal["attended", "masked"] = "attended"
    """Whether the map's tokens attend to padded tokens, as in the released networks ("attended"), or not
    ("masked")."""


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """One resolution of the network: a sequence of blocks."""

    channels: Channels
    pattern: Annotated[tuple[tuple[BlockKind, Annotated[int, Range(0, 256)]], ...], Length(1, 64)]
    """Blocks in order, as (kind, count): `(("conv", 9), ("attention", 3), ("conv", 1))`."""
    conv_kernel_size: Kernel = 7
    conv_expansion_ratio: Ratio = 4.0
    expanded_kernel_size: Kernel | None = None
    """Kernel of an additional depthwise convolution on the expanded channels of every conv block and feed-forward
    network (Table 11). None: no such convolution."""
    attention: AttentionConfig = AttentionConfig()
    windows: WindowConfig | None = None
    """Windows of the attention on large maps (Table 16). None: each token attends to the whole map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.depth <= 256, self, "pattern", "1 to 256 blocks in all")
        if "attention" in self.blocks:
            self._check_attention_channels()
        self._check_windows()

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        check("attention" in self.blocks, self, "windows", "null in a stage without attention blocks")
        windowed = [name for name, row in ATTENTION_OPERATORS.items() if row.windows]
        check(
            self.attention.operator in windowed,
            self,
            "windows",
            f"null: the attention operator '{self.attention.operator}' has no windows; these have: "
            f"{', '.join(windowed)}",
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
        """Number of blocks of the stage."""
        return sum(count for _, count in self.pattern)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """A whole network: a stem of stride 4, four stages and, if it has classes, a classifier head."""

    name: str
    stages: Annotated[tuple[StageConfig, ...], Length(len(STRIDES), len(STRIDES))]
    in_chans: Annotated[int, Range(1, 1024)] = 3
    num_classes: Annotated[int, Range(0, 1_000_000)] = 1000
    """Number of classes. 0: no classifier; the network returns pooled features."""
    distillation: bool = False
    """Whether the head has two classifiers, for labels and teacher. Inference returns the mean of both outputs."""
    drop_path_rate: ShareBelowOne = 0.0
    """Drop rate of stochastic depth in the last residual; the rate grows linearly from 0 over the depth."""
    layer_scale_init: Annotated[float, Range(0, 1000, above=True)] | None = None
    """Initial value of a learned per-channel factor on each residual except the CPE's. None: no factor."""
    stem: Literal["conv", "patch"] = "conv"
    """Stem: three early convolutions ("conv"), or one 4x4 convolution of stride 4 ("patch"; Figure 2)."""
    stem_kernel_size: Kernel = 5
    """Kernel of the two strided convolutions of the stem "conv" (Figure 2, "kernel size")."""
    downsample: Literal["overlapping", "patch"] = "overlapping"
    """Convolution of stride 2 between stages: 3x3 ("overlapping"), or 2x2 without overlap ("patch")."""
    norm: Literal["batch", "layer"] = "batch"
    """Norms: a batch norm after every convolution ("batch"), or ConvNeXt's layer norms ("layer"; Figure 2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.stages[0].channels % 2 == 0, self, "stages", "an even number of channels in the first stage")
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
        """Return a copy with the given fields changed.

        Raises:
            ConfigError: a changed field is invalid.
        """
        return replace(self, **options)
