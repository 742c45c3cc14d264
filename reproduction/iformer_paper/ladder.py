"""Figure 2: from a ConvNeXt to iFormer-M in nine steps, each a small change of the previous config."""

from __future__ import annotations

from dataclasses import dataclass, replace

from iformer.config.network import AttentionConfig, BlockKind, NetworkConfig, StageConfig

CHANNELS = (48, 96, 192, 384)
"""Channels of iFormer-M's stages, used for all steps; for the first steps the paper does not print them."""

FULL_HEADS = AttentionConfig(operator="sha", reduction=1, ffn_expansion_ratio=4.0, position_encoding=False)
"""Attention as first introduced in the ladder: one head of full width, FFN ratio 4, no position encoding."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One bar of Figure 2."""

    label: str
    """Label of the bar in the figure."""
    change: str
    """Description of the difference from the previous step."""
    network: NetworkConfig


def with_depths(network: NetworkConfig, depths: tuple[int, int, int, int]) -> NetworkConfig:
    """Return the network with only conv blocks; `depths` are the numbers of blocks in the four stages."""
    stages = tuple(
        replace(stage, pattern=(("conv", depth),)) for stage, depth in zip(network.stages, depths, strict=True)
    )
    return network.with_options(stages=stages)


def with_attention(network: NetworkConfig, stage3_blocks: int, *, stage4_blocks: int = 0) -> NetworkConfig:
    """Return the network with attention blocks in stage 3, and in stage 4 if `stage4_blocks` is not 0.

    In stage 3 each attention block replaces two conv blocks, and one conv block stays after the attention, as in
    iFormer-M. In stage 4 all blocks are replaced.
    """
    conv_blocks = network.stages[2].depth - 2 * stage3_blocks
    after = min(conv_blocks, 1)
    stage3 = _pattern(("conv", conv_blocks - after), ("attention", stage3_blocks), ("conv", after))
    stage4 = _pattern(("attention", stage4_blocks)) if stage4_blocks else network.stages[3].pattern
    first, second, third, fourth = network.stages
    return network.with_options(
        stages=(first, second, replace(third, pattern=stage3), replace(fourth, pattern=stage4))
    )


def with_attention_options(network: NetworkConfig, **options: object) -> NetworkConfig:
    """Return the network with new `AttentionConfig` fields in stages 3 and 4; a tuple has one value per stage."""
    stages = list(network.stages)
    for place in (2, 3):
        chosen = {key: value[place - 2] if isinstance(value, tuple) else value for key, value in options.items()}
        attention = replace(stages[place].attention, **chosen)  # type: ignore[arg-type]
        stages[place] = replace(stages[place], attention=attention)
    return network.with_options(stages=tuple(stages))


def _pattern(*runs: tuple[BlockKind, int]) -> tuple[tuple[BlockKind, int], ...]:
    return tuple(run for run in runs if run[1] > 0)


def _ladder() -> tuple[Step, ...]:
    stages = tuple(
        StageConfig(channels=channels, pattern=(("conv", 1),), attention=FULL_HEADS) for channels in CHANNELS
    )
    plain = NetworkConfig(
        name="baseline", stages=stages, stem="patch", stem_kernel_size=3, downsample="patch", norm="layer"
    )
    network = with_depths(plain, (2, 2, 6, 2))
    steps = [Step(label="baseline", change="ConvNeXt: 4x4 patches, layer norm, depths 2 2 6 2", network=network)]

    def step(label: str, change: str, network: NetworkConfig) -> NetworkConfig:
        steps.append(Step(label=label, change=change, network=network.with_options(name=label)))
        return network

    network = step("conv stem", "three early convolutions with 3x3 kernels", network.with_options(stem="conv"))
    network = step(
        "batch norm",
        "batch norm behind every convolution, 3x3 downsampling that overlaps",
        network.with_options(norm="batch", downsample="overlapping"),
    )
    network = step("deeper", "depths 3 3 9 3", with_depths(network, (3, 3, 9, 3)))
    network = step("stage ratio", "depths 2 2 18 2", with_depths(network, (2, 2, 18, 2)))
    network = step("kernel size", "5x5 kernels in the stem", network.with_options(stem_kernel_size=5))
    network = step(
        "SHA",
        "4 single-head attention blocks for 8 of stage 3's conv blocks, 2 as stage 4",
        with_attention(network, 4, stage4_blocks=2),
    )
    network = step("SHMA", "modulation", with_attention_options(network, operator="shma"))
    network = step(
        "reduced width",
        "R = 2 and 4, FFN ratio 3",
        with_attention_options(network, reduction=(2, 4), ffn_expansion_ratio=3.0),
    )
    step(
        "positional encoding (iFormer)",
        "3x3 depthwise position encoding",
        with_attention_options(network, position_encoding=True),
    )
    return tuple(steps)


LADDER: tuple[Step, ...] = _ladder()
"""The bars of Figure 2, from left to right. The last bar is iFormer-M."""


def ladder_network(label: str) -> NetworkConfig:
    """Return the network of the ladder's step with this label."""
    return next(step.network for step in LADDER if step.label == label)
