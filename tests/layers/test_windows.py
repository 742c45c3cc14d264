"""Windowed attention compared with the simplest implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from iformer.config.network import NetworkConfig, StageConfig, WindowConfig
from iformer.config.windows import with_design
from iformer.layers.attention import AttentionBlock
from iformer.layers.windows import Windows
from iformer.models.backbone import Backbone, Stage
from iformer.models.factory import build
from iformer.models.folding import fold
from tiny.networks import randomize, tiny_config

sides = st.integers(1, 24)
window_sizes = st.integers(2, 8)


def windowed(config: NetworkConfig, **options: object) -> NetworkConfig:
    """The tiny network with windows of 4 x 4 tokens in stage 3, and its two attention blocks in them."""
    options = {"window_size": 4, "global_blocks": 0, "windowed_stages": (3,)} | options
    return with_design(config, "hybrid", **options)  # type: ignore[arg-type]


def same_weights(config: NetworkConfig, model: Backbone) -> Backbone:
    other = build(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@given(sides, sides, window_sizes, st.integers(1, 7), st.booleans())
def test_cut_and_join_are_each_others_inverse(
    height: int, width: int, size: int, chunks: int, channels_last: bool
) -> None:
    windows = Windows(config=WindowConfig(window_size=size, channel_chunks=chunks), height=height, width=width)
    x = torch.randn(2, 7, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    strip = windows.cut(x)
    assert strip.shape == (2, 7, windows.count * size, size)
    assert torch.equal(windows.join(strip), x)
    # each window is a square of the map, or padding
    padded = F.pad(x, (0, windows.padded_width - width, 0, windows.padded_height - height))
    squares = [
        padded[:, :, top : top + size, left : left + size]
        for left in range(0, windows.padded_width, size)
        for top in range(0, windows.padded_height, size)
    ]
    assert torch.equal(strip, torch.cat(squares, dim=2))


@settings(max_examples=25)
@given(sides, sides, window_sizes)
def test_a_graphs_convolution_is_that_of_each_window(height: int, width: int, size: int) -> None:
    windows = Windows(config=WindowConfig(window_size=size), height=height, width=width)
    conv = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3).requires_grad_(False)
    strip = windows.cut(torch.randn(2, 3, height, width))
    squares = strip.split(size, dim=2)
    expected = torch.cat([conv(square) for square in squares], dim=2)
    torch.testing.assert_close(windows.convolve(conv, strip), expected)

    class Convolve(torch.nn.Module):
        def forward(self, strip: Tensor) -> Tensor:
            return windows.convolve(conv, strip)

    captured = torch.jit.trace(Convolve(), strip, check_trace=False)
    torch.testing.assert_close(captured(strip), expected)


# image sizes whose stage-3 maps are square, not square, and not whole windows of 4 x 4
@settings(max_examples=25)
@given(st.integers(33, 260), st.integers(33, 260), st.sampled_from(["attended", "masked"]))
def test_hybrid_and_chunk_hybrid_are_the_same_function(
    network: tuple[NetworkConfig, Backbone],
    height: int,
    width: int,
    padded_tokens: str,
) -> None:
    """Outputs, the gradients of the input and of every weight, in single precision."""
    config, weights = network
    x = torch.randn(1, 3, height, width)
    results = []
    for chunks in (1, 5):
        chosen = windowed(config, padded_tokens=padded_tokens)
        stages = list(chosen.stages)
        assert stages[2].windows is not None
        stages[2] = replace(stages[2], windows=replace(stages[2].windows, channel_chunks=chunks))
        model = same_weights(chosen.with_options(stages=tuple(stages)), weights)
        given_x = x.clone().requires_grad_()
        output = model(given_x)
        output.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([output.detach(), given_x.grad, *gradients])
    for hybrid, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, hybrid, rtol=1e-6, atol=1e-6 * float(hybrid.abs().max()))


@pytest.fixture(scope="module")
def network() -> tuple[NetworkConfig, Backbone]:
    """The tiny network's config, and it with plain attention."""
    model = build(tiny_config())
    randomize(model)
    model.eval()
    return tiny_config(), model


@settings(max_examples=15)
@given(st.integers(32, 64), st.integers(32, 64), st.sampled_from(["attended", "masked"]))
def test_a_map_of_one_window_stays_whole(
    network: tuple[NetworkConfig, Backbone],
    height: int,
    width: int,
    padded_tokens: str,
) -> None:
    """Up to 64 pixels, stage 3 has at most 4 x 4 tokens."""
    config, plain = network
    hybrid = same_weights(windowed(config, padded_tokens=padded_tokens), plain)
    x = torch.randn(1, 3, height, width)
    assert torch.equal(hybrid(x), plain(x))


def test_plain_and_hybrid_differ_from_two_windows_on(network) -> None:
    config, plain = network
    x = torch.randn(1, 3, 64, 65)
    assert not torch.allclose(same_weights(windowed(config), plain)(x), plain(x), atol=1e-3)
    all_global = same_weights(windowed(config, global_blocks=2), plain)
    assert torch.equal(all_global(x), plain(x))


def test_the_two_forms_of_padding_differ_where_there_is_padding(network) -> None:
    config, plain = network
    attended = same_weights(windowed(config), plain)
    masked = same_weights(windowed(config, padded_tokens="masked"), plain)
    torch.manual_seed(0)
    whole, ragged = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 100)
    assert torch.equal(attended(whole), masked(whole))
    difference = (attended(ragged) - masked(ragged)).abs().max()
    assert difference > 1e-4  # rounding is a thousandth of that


def by_hand(blocks: list[AttentionBlock], x: Tensor, size: int, *, masked: bool, global_blocks: int) -> Tensor:
    """A stage's attention blocks, window by window: with zeros for padding, or with what there is of each."""
    in_windows = blocks[: len(blocks) - global_blocks]
    height, width = x.shape[2:]
    x = in_windows[0].position(x)
    if not masked:
        x = F.pad(x, (0, -width % size, 0, -height % size))
    rows = []
    for band in x.split(size, dim=2):
        done = []
        for window in band.split(size, dim=3):
            y = in_windows[0].ffn(in_windows[0].attention(window))
            for block in in_windows[1:]:
                y = block(y)
            done.append(y)
        rows.append(torch.cat(done, dim=3))
    x = torch.cat(rows, dim=2)[:, :, :height, :width]
    for block in blocks[len(blocks) - global_blocks :]:
        x = block(x)
    return x


@pytest.mark.parametrize("global_blocks", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (12, 4), (7, 11), (3, 9)])
def test_a_stage_is_what_its_windows_are_one_by_one(
    network, shape: tuple[int, int], folded: bool, masked: bool, global_blocks: int
) -> None:
    """Three blocks: cut in the first behind its position encoding, joined before the global ones."""
    config, _ = network
    windows = WindowConfig(
        window_size=4, global_blocks=global_blocks, padded_tokens="masked" if masked else "attended"
    )
    third = replace(config.stages[2], pattern=(("attention", 3),), windows=windows)
    config = config.with_options(stages=(*config.stages[:2], third, config.stages[3]))
    model = build(config).eval()
    randomize(model)
    stage = (fold(model) if folded else model).stages[2]
    assert isinstance(stage, Stage)
    stage.downsample = torch.nn.Identity()
    x = torch.randn(2, 24, *shape)
    with torch.no_grad():
        expected = by_hand(list(stage.blocks), x, 4, masked=masked, global_blocks=global_blocks)  # type: ignore[arg-type]
        torch.testing.assert_close(stage(x), expected, rtol=1e-5, atol=1e-5)


def test_no_token_of_the_map_depends_on_masked_padding(network) -> None:
    """Whatever stands in the padding between cut and join."""
    config, plain = network
    stage = same_weights(windowed(config, padded_tokens="masked"), plain).stages[2]
    attention = stage.blocks[1].attention
    windows = Windows(config=WindowConfig(window_size=4, padded_tokens="masked"), height=6, width=7)
    x = torch.randn(1, 24, 6, 7)
    strip = windows.cut(x)
    inside = windows.cut(torch.ones_like(x))
    rubbish = torch.where(inside > 0, strip, 100 * torch.randn_like(strip))
    with torch.no_grad():
        expected, found = (windows.join(attention(part, windows)) for part in (strip, rubbish))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("padded_tokens", ["attended", "masked"])
@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("folded", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_graphs_of_windows(network, chunks: int, padded_tokens: str, folded: bool) -> None:
    """`torch.export` with a free batch, and a trace."""
    config, plain = network
    design = {"window_size": 4, "global_blocks": 0, "windowed_stages": (3,), "padded_tokens": padded_tokens}
    chosen = with_design(config, "chunk_hybrid", channel_chunks=chunks, **design)  # type: ignore[arg-type]
    model = same_weights(chosen, plain)
    tried = fold(model) if folded else model
    example = torch.randn(2, 3, 100, 130)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(tried, (example,), dynamic_shapes=({0: batch},), strict=False)
    one, five = torch.randn(1, 3, 100, 130), torch.randn(5, 3, 100, 130)
    with torch.no_grad():
        for x in (one, five):
            torch.testing.assert_close(exported.module()(x), tried(x), atol=1e-5, rtol=1e-5)
        traced = torch.jit.trace(tried, one, check_trace=False)
        torch.testing.assert_close(traced(one), tried(one), atol=1e-5, rtol=1e-5)


def test_windows_of_a_stage_with_convolutions_between(network) -> None:
    """A convolution block sees the whole map: runs of attention blocks are cut and joined by themselves."""
    config, _ = network
    pattern = (("attention", 1), ("conv", 1), ("attention", 2))
    third = StageConfig(channels=24, pattern=pattern, windows=WindowConfig(window_size=4, global_blocks=1))
    config = config.with_options(stages=(*config.stages[:2], third, config.stages[3]))
    model = build(config).eval()
    randomize(model)
    stage = model.stages[2]
    assert isinstance(stage, Stage)
    assert stage.windowed == {0, 2}
    stage.downsample = torch.nn.Identity()
    x = torch.randn(1, 24, 8, 8)
    with torch.no_grad():
        first, conv, second, last = stage.blocks
        y = conv(by_hand([first], x, 4, masked=False, global_blocks=0))
        torch.testing.assert_close(stage(x), last(by_hand([second], y, 4, masked=False, global_blocks=0)))


def test_gradient_checkpointing_in_windows(network) -> None:
    config, plain = network
    gradients = []
    for enable in (False, True):
        model = same_weights(windowed(config), plain).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model(torch.randn(2, 3, 128, 128)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)
