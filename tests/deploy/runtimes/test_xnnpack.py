"""Depthwise convolutions in the sizes for which XNNPACK has kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from iformer.deploy.runtimes.xnnpack import MAX_TAPS, SplitDepthwise, for_xnnpack
from iformer.deploy.spec import Calibration, make_spec
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model
from iformer.tasks.export import exportable


def taps(network: nn.Module) -> list[int]:
    """The weights of a channel of each depthwise convolution."""
    return [
        module.weight[0, 0].numel()
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    ]


@pytest.mark.parametrize("size", [7, 9, 11])
@pytest.mark.parametrize("bias", [True, False])
def test_the_parts_together_are_the_convolution(size: int, bias: bool) -> None:
    conv = nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=bias).double()
    split = SplitDepthwise(conv)
    for height, width in ((13, 8), (3, 5)):  # the second is smaller than the kernel
        x = torch.randn(2, 6, height, width, dtype=torch.double)
        torch.testing.assert_close(split(x), conv(x), rtol=1e-12, atol=1e-12)
    assert max(taps(split)) <= MAX_TAPS
    assert sum(taps(split)) == size**2


def test_a_network_has_no_larger_kernel_and_the_same_logits() -> None:
    torch.manual_seed(0)
    spec = make_spec(exportable(create_model("iformer_t").eval()))
    assert max(taps(spec.network)) == 49
    converted = for_xnnpack(spec)
    assert max(taps(converted.network)) <= MAX_TAPS
    assert max(taps(spec.network)) == 49, "the network that came in was changed"
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(converted.network(x), spec.network(x), rtol=1e-4, atol=1e-5)


def test_a_plain_graph_is_the_converters_own() -> None:
    plain = replace(make_spec(exportable(create_model("iformer_t").eval())), plain=True)
    assert for_xnnpack(plain) is plain


def test_layers_that_stay_as_they_are_become_their_parts(model: Classifier) -> None:
    kept = ("stages.0.blocks.0.depthwise", "stages.0.blocks.0.expand")
    calibration = Calibration(images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8), kept=kept)
    converted = for_xnnpack(make_spec(exportable(model), precision="int8", calibration=calibration))
    assert converted.calibration is not None
    names = [name for name, _ in converted.network.named_modules()]
    *parts, expand = converted.calibration.kept
    assert expand == "stages.0.blocks.0.expand"
    assert parts == [name for name in names if name.startswith(f"{kept[0]}.parts.")]
    assert len(parts) == 3


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 7, padding=3),
        nn.Conv2d(4, 8, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, stride=2),
        nn.Conv2d(4, 4, 7, groups=4),
        nn.Conv2d(4, 4, 13, padding=6, groups=4),
    ],
    ids=["small", "not depthwise", "multiplier", "stride", "padding", "too large for two rows"],
)
def test_other_convolutions_are_left_alone(model: Classifier, conv: nn.Conv2d) -> None:
    spec = replace(make_spec(exportable(model)), network=nn.Sequential(conv))
    (left,) = for_xnnpack(spec).network.children()
    assert isinstance(left, nn.Conv2d)
    assert left.kernel_size == conv.kernel_size
