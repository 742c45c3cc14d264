"""A block on a large map gives the same result slice by slice, and only in eager inference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iformer.layers import residual, sliced
from iformer.layers.conv_block import ConvBlock
from iformer.layers.ffn import FFN
from iformer.layers.folded_conv import FoldedConv, conv_gelu
from iformer.layers.residual import ResidualAdd
from tiny.networks import randomize

Block = ConvBlock | FFN

BLOCKS: dict[str, Callable[[], Block]] = {
    "conv": lambda: ConvBlock.build(8, kernel_size=3, expansion_ratio=3, residual=ResidualAdd(8)),
    "FFN": lambda: FFN.build(8, expansion_ratio=3, residual=ResidualAdd(8, layer_scale_init=0.5)),
}


def folded(kind: str) -> Block:
    block = BLOCKS[kind]()
    randomize(block)
    return block.eval().fold()


def image(batch: int = 2, height: int = 11, width: int = 7) -> Tensor:
    return torch.randn(batch, 8, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sliced_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every map is large, a slice holds 30 pixels of 24 channels. The list grows with each call in slices."""
    monkeypatch.setattr(sliced, "LARGE_BYTES", 0)
    monkeypatch.setattr(sliced, "SLICE_BYTES", 30 * 24 * 4)
    calls: list[int] = []

    def counted(shortcut: Tensor, x: Tensor, expand: FoldedConv, project: FoldedConv) -> Tensor:
        calls.append(x.numel())
        return sliced.add_in_slices(shortcut, x, expand, project)

    monkeypatch.setattr(residual, "add_in_slices", counted)
    return calls


def whole(block: Block, x: Tensor) -> Tensor:
    y = block.depthwise(x) if isinstance(block, ConvBlock) else x
    return x + block.project(conv_gelu(block.expand, y))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_slices_give_the_result_of_the_whole_map(
    sliced_calls: list[int], kind: str, layout: torch.memory_format
) -> None:
    block, x = folded(kind), image().contiguous(memory_format=layout)
    if not block.expand.can_fuse(x):  # type: ignore[operator, union-attr]
        pytest.skip("oneDNN's kernels are for x86 CPUs")
    before = x.clone()
    torch.testing.assert_close(block(x), whole(block, x), atol=1e-5, rtol=1e-5)
    assert sliced_calls == [x.numel()]
    assert torch.equal(x, before)


def test_small_maps_stay_whole(monkeypatch: pytest.MonkeyPatch, sliced_calls: list[int]) -> None:
    block, x = folded("FFN"), image()
    monkeypatch.setattr(sliced, "LARGE_BYTES", x.numel() * 3 * x.element_size())
    torch.testing.assert_close(block(x), whole(block, x), atol=1e-5, rtol=1e-5)
    assert sliced_calls == []


def test_training_gradients_and_hooks_take_the_plain_path(sliced_calls: list[int]) -> None:
    BLOCKS["FFN"]().train()(image())
    block, x = folded("FFN"), image().requires_grad_()
    block(x).sum().backward()
    assert x.grad is not None
    block.project.register_forward_hook(lambda _module, _inputs, _output: None)
    block(image())
    assert sliced_calls == []


def test_captured_graphs_take_the_plain_path(sliced_calls: list[int]) -> None:
    block, x = folded("conv"), image()
    expected = whole(block, x)
    program = torch.export.export(block, (x,))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {"aten.conv2d.default", "aten.gelu.default", "aten.add.Tensor"}
    with torch.no_grad():
        for captured in (torch.jit.trace(block, x), torch.fx.symbolic_trace(block)):
            sliced_calls.clear()
            assert "mkldnn" not in captured.code
            torch.testing.assert_close(captured(x), expected, atol=1e-5, rtol=1e-5)
    assert sliced_calls == []
