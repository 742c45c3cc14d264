"""The backbone of every task: four feature maps at strides 4, 8, 16 and 32.

Shape letters: B batch, C channels, H and W the image's sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iformer.config.metadata import Metadata
from iformer.config.network import MIN_INPUT_SIZE, NetworkConfig, StageConfig, WindowConfig
from iformer.config.preprocessing import Preprocessing
from iformer.errors import UserError
from iformer.layers.attention import AttentionBlock
from iformer.layers.capture import is_capturing
from iformer.layers.conv_block import ConvBlock
from iformer.layers.conv_norm import fold_part
from iformer.layers.downsample import build_downsample
from iformer.layers.ffn import FFN
from iformer.layers.operator import operator_class
from iformer.layers.position import PositionEncoding
from iformer.layers.residual import ResidualAdd
from iformer.layers.stem import PatchStem, Stem
from iformer.layers.windows import Windows
from iformer.models.timm_interface import Indices, TimmInterface, stage_indices

ResidualFactory = Callable[..., ResidualAdd]

FROZEN_PARTS: dict[str, int | None] = {
    "none": None,
    "stem": 0,
    "stage1": 1,
    "stage2": 2,
    "stage3": 3,
    "backbone": 4,
}
"""Arguments of `Backbone.freeze`, with the number of stages frozen besides the stem. None: nothing is frozen."""


class Stage(nn.Module):
    """An optional stride-2 downsampling, then the blocks in order.

    With windows, the attention blocks except the last `windows.global_blocks` run in windows of a large map.
    """

    def __init__(
        self, *, downsample: nn.Module, blocks: Sequence[nn.Module], windows: WindowConfig | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.windows = windows
        self.windowed = _windowed(blocks, windows)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        windows = Windows.of(x, self.windows)
        for index, block in enumerate(self.blocks):
            run: Callable[..., Tensor] = block
            if windows is not None and index in self.windowed:
                cut, join = index - 1 not in self.windowed, index + 1 not in self.windowed
                run = partial(block, windows=windows, cut=cut, join=join)
            if self.grad_checkpointing and self.training:
                x = checkpoint(run, x, use_reentrant=False, context_fn=partial(_recompute_contexts, block))
            else:
                x = run(x)
        return x

    def fold(self) -> Stage:
        """Return the stage for inference, with each module folded."""
        return Stage(
            downsample=fold_part(self.downsample),
            blocks=[block.fold() for block in self.blocks],  # type: ignore[operator]
            windows=self.windows,
        )


def _windowed(blocks: Sequence[nn.Module], windows: WindowConfig | None) -> frozenset[int]:
    """Return the indices of the blocks of a stage that run in windows."""
    if windows is None:
        return frozenset()
    attention = [index for index, block in enumerate(blocks) if isinstance(block, AttentionBlock)]
    return frozenset(attention[: max(0, len(attention) - windows.global_blocks)])


class Backbone(TimmInterface):
    """Stem and four stages.

    `forward` returns the feature maps of `out_indices`, B x C_i x H/s_i x W/s_i with s = 4, 8, 16, 32. Sides are
    rounded up, or down with a patch stem or patch downsampling. The input may have any sides of 32 pixels or more.
    Stages after the last one of `out_indices` are not built.
    """

    is_folded = False
    """Whether this is the result of `iformer.models.folding.fold`."""

    def __init__(self, config: NetworkConfig, *, out_indices: Indices = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.config = config
        self._frozen: tuple[nn.Module, ...] = ()
        self.metadata = Metadata(preprocessing=Preprocessing().with_channels(config.in_chans))
        self.out_indices = stage_indices(out_indices, len(config.stages))
        residual = _drop_path_schedule(config)
        self.stem = _stem(config)
        in_channels = config.stages[0].channels
        stages = []
        for index, stage in enumerate(config.stages[: max(self.out_indices) + 1]):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = build_downsample(
                    in_channels, stage.channels, kind=config.downsample, norm=config.norm
                )
            blocks = _blocks(config, stage, residual)
            stages.append(Stage(downsample=downsample, blocks=blocks, windows=stage.windows))
            in_channels = stage.channels
        self.stages = nn.ModuleList(stages)
        self.apply(init_weights)

    @property
    def is_complete(self) -> bool:
        """Whether the network has all stages of its config."""
        return len(self.stages) == len(self.config.stages)

    def check_input(self, x: Tensor) -> None:
        """Raise `UserError` unless `x` is floating-point, B x in_chans x H x W, with sides of 32 or more."""
        _check_input(x, self.config.in_chans)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of every stage for images, B x in_chans x H x W.

        Raises:
            UserError: `x` is not floating-point, has another shape, or a side is too small; see `check_input`.
        """
        self.check_input(x)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def freeze(self, until: str) -> None:
        """Freeze weights and batch-norm statistics of the first part of the network.

        Args:
            until: the last frozen part: "stem", "stage1", "stage2", "stage3" or "backbone"; "none" freezes
                nothing.

        Raises:
            KeyError: `until` is none of these.
        """
        stages = FROZEN_PARTS[until]
        self._frozen = () if stages is None else (self.stem, *self.stages[:stages])
        for part in (self.stem, *self.stages):
            part.requires_grad_(part not in self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        """Map B x in_chans x H x W to the list of feature maps of `out_indices`."""
        maps = self.feature_maps(x)
        return [maps[i] for i in self.out_indices]


def init_weights(module: nn.Module) -> None:
    """Initialise a convolution or linear layer: weights truncated normal with std 0.02, biases zero.

    Other modules are left as they are.

    The paper's Table 9 prints 0.2, which is a typing error: the released training code used 0.02.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _stem(config: NetworkConfig) -> Stem | PatchStem:
    channels = config.stages[0].channels
    if config.stem == "patch":
        return PatchStem.build(config.in_chans, channels, norm=config.norm)
    return Stem.build(config.in_chans, channels, kernel_size=config.stem_kernel_size, norm=config.norm)


def _blocks(config: NetworkConfig, stage: StageConfig, residual: ResidualFactory) -> list[nn.Module]:
    return [
        _conv_block(config, stage, residual) if kind == "conv" else _attention_block(stage, residual)
        for kind in stage.blocks
    ]


def _conv_block(config: NetworkConfig, stage: StageConfig, residual: ResidualFactory) -> ConvBlock:
    return ConvBlock.build(
        stage.channels,
        kernel_size=stage.conv_kernel_size,
        expansion_ratio=stage.conv_expansion_ratio,
        residual=residual(stage.channels),
        expanded_kernel_size=stage.expanded_kernel_size,
        norm=config.norm,
    )


def _attention_block(stage: StageConfig, residual: ResidualFactory) -> AttentionBlock:
    channels, attention = stage.channels, stage.attention
    position: nn.Module = nn.Identity()
    if attention.position_encoding:
        position = PositionEncoding(channels, residual=residual(channels, layer_scale=False))
    return AttentionBlock(
        position=position,
        attention=operator_class(attention.operator)(channels, attention, residual=residual(channels)),
        ffn=FFN.build(
            channels,
            expansion_ratio=attention.ffn_expansion_ratio,
            residual=residual(channels),
            expanded_kernel_size=stage.expanded_kernel_size,
        ),
    )


def _drop_path_schedule(config: NetworkConfig) -> ResidualFactory:
    """Return a factory of residual sums with stochastic depth that grows linearly over the depth.

    A conv block, a CPE, an attention and an FFN count as one unit each.
    """
    units = 0
    for stage in config.stages:
        attention_units = 3 if stage.attention.position_encoding else 2
        units += sum(1 if kind == "conv" else attention_units for kind in stage.blocks)
    rates = iter([config.drop_path_rate * i / max(units - 1, 1) for i in range(units)])

    def residual(channels: int, *, layer_scale: bool = True) -> ResidualAdd:
        init = config.layer_scale_init if layer_scale else None
        return ResidualAdd(channels, drop_path=next(rates), layer_scale_init=init)

    return residual


@torch.fx.wrap  # symbolic tracing records the call instead of following it
def _check_input(x: Tensor, in_chans: int) -> None:
    if is_capturing():  # the check of the example's shape must not enter a graph
        return
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"of {x.dtype}" if isinstance(x, Tensor) else f"of type {type(x).__name__}"
        raise UserError(f"input is {kind}; expected a tensor of floating-point numbers, prepared as in training")
    if x.ndim != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < MIN_INPUT_SIZE:
        raise UserError(
            f"input has shape {tuple(x.shape)}; expected B x {in_chans} x H x W "
            f"with H and W of {MIN_INPUT_SIZE} or more"
        )


def _recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the first and the repeated forward pass of a checkpointed block."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Prevent the repeated forward pass from updating the running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [_batches(norm).clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            _batches(norm).copy_(count)


def _batches(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked
