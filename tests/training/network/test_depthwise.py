"""The faster gradient of depthwise convolutions equals PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from iformer import create_model
from iformer.training.network.depthwise import train_depthwise_fast, weight_gradient

CPU = torch.device("cpu")


@pytest.mark.parametrize("kernel_size", [5, 7])
@pytest.mark.parametrize("size", [(14, 14), (3, 2), (30, 57), (28, 1), (64, 29)])
def test_weight_gradient_is_autograds(kernel_size: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel_size, padding=kernel_size // 2, groups=6, bias=False).double()
    images = torch.randn(3, 6, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    output = conv(images)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    ours = weight_gradient(images, gradient, kernel_size)
    torch.testing.assert_close(ours, conv.weight.grad, rtol=1e-12, atol=1e-12)


def gradients(conv: nn.Conv2d, images: Tensor, *, bf16: bool) -> list[Tensor]:
    """The output, and the gradients by the input and the parameters, in double precision."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = conv(images)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).sin())
    return [value.detach().double() for value in (output, images.grad, *(p.grad for p in conv.parameters()))]  # type: ignore[union-attr]


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_as_exact_as_onednn_in_bf16(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(32, 32, 7, padding=3, groups=32, bias=bias)
    fast = copy.deepcopy(plain)
    train_depthwise_fast(fast, CPU, "bf16")
    assert type(fast) is not nn.Conv2d
    images = torch.randn(4, 32, 20, 20)
    exact = gradients(copy.deepcopy(plain).double(), images.double(), bf16=False)

    def errors(conv: nn.Conv2d) -> list[float]:
        computed = gradients(conv, images, bf16=True)
        return [float((c - e).norm() / e.norm()) for c, e in zip(computed, exact, strict=True)]

    for ours, theirs in zip(errors(fast), errors(plain), strict=True):
        assert ours < 1.2 * theirs + 1e-6
    assert {parameter.grad.dtype for parameter in fast.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_only_the_7x7_convolutions_of_a_network_change() -> None:
    network = create_model("iformer_t", num_classes=3)
    keys = list(network.state_dict())
    train_depthwise_fast(network, CPU, "bf16")
    changed = [m for m in network.modules() if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d]
    assert {module.kernel_size for module in changed} == {(7, 7)}
    assert len(changed) == sum(
        module.kernel_size == (7, 7) for module in network.modules() if isinstance(module, nn.Conv2d)
    )
    assert list(network.state_dict()) == keys


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, stride=2),
        nn.Conv2d(4, 4, 7, padding=2, groups=4),
        nn.Conv2d(4, 8, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=2),
        nn.Conv2d(4, 4, 7, padding=6, dilation=2, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, (7, 5), padding=(3, 2), groups=4),
    ],
)
def test_other_convolutions_stay(conv: nn.Conv2d) -> None:
    train_depthwise_fast(conv, CPU, "bf16")
    assert type(conv) is nn.Conv2d


def test_other_places_stay() -> None:
    conv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    train_depthwise_fast(conv, CPU, "fp32")
    train_depthwise_fast(conv, torch.device("cuda"), "bf16")
    assert type(conv) is nn.Conv2d


def test_without_gradients_and_in_graphs_it_is_the_plain_convolution() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 16, 7, padding=3, groups=16)
    fast = copy.deepcopy(plain)
    train_depthwise_fast(fast, CPU, "bf16")
    images = torch.randn(2, 16, 9, 9)
    assert torch.equal(fast(images), plain(images))  # no autocast: fp32
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(images), plain(images))
    program = torch.export.export(fast, (images,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]


@pytest.mark.parametrize("shape", [(0, 8, 9, 9), (8, 9, 9), (1, 8, 1, 1)])
def test_inputs_of_any_kind_are_taken(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    fast = copy.deepcopy(plain)
    train_depthwise_fast(fast, CPU, "bf16")
    images = torch.randn(shape)
    for conv in (plain, fast):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            conv(images).sum().backward()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=2e-2, atol=2e-2)
