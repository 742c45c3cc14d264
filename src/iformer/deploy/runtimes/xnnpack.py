"""Rewrites for XNNPACK, the kernel library of LiteRT and ExecuTorch on CPUs."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from iformer.deploy.spec import ExportSpec

MAX_TAPS = 25
"""Largest number of weights per channel for which XNNPACK has a depthwise kernel. XNNPACK runs larger depthwise
convolutions as general ones: 7 x 7 takes 23x the time of 5 x 5 (`docs/benchmarks/inference.md`)."""


class SplitDepthwise(nn.Module):
    """A depthwise convolution with an odd K x K kernel, computed as a sum of smaller depthwise convolutions.

    The middle rows of the kernel form one part. Each remaining pair of rows, at equal distances above and below
    the middle, forms a part with two dilated rows. All parts have symmetric padding, so that no part slices or
    copies the input. Input and output are B x C x H x W.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        size = conv.kernel_size[0]
        middle = size // 2
        # the middle part has 2 * reach + 1 rows, the largest odd number with at most MAX_TAPS weights
        reach = (MAX_TAPS // size - 1) // 2
        rows = [list(range(middle - reach, middle + reach + 1))]
        rows += [[middle - distance, middle + distance] for distance in range(reach + 1, middle + 1)]
        self.parts = nn.ModuleList(_part(conv, of_part, bias=index == 0) for index, of_part in enumerate(rows))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.parts
        y: Tensor = first(x)
        for part in others:
            y = y + part(x)
        return y


def for_xnnpack(spec: ExportSpec) -> ExportSpec:
    """Return the spec with large depthwise convolutions replaced by `SplitDepthwise`; a plain spec is unchanged.

    In the calibration's `kept`, the name of a replaced layer becomes the names of its parts.
    """
    if spec.plain:
        return spec
    network = copy.deepcopy(spec.network)
    parts: dict[str, tuple[str, ...]] = {}
    for name, module in spec.network.named_modules():
        if _is_too_large(module):
            split = SplitDepthwise(module)
            network.set_submodule(name, split)
            parts[name] = tuple(f"{name}.parts.{index}" for index in range(len(split.parts)))
    calibration = spec.calibration
    if calibration is not None:
        kept = tuple(part for name in calibration.kept for part in parts.get(name, (name,)))
        calibration = replace(calibration, kept=kept)
    return replace(spec, network=network, calibration=calibration)


def _is_too_large(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.stride == module.dilation == (1, 1)
        and module.kernel_size[0] == module.kernel_size[1]
        and module.kernel_size[0] % 2 == 1
        and module.padding == (module.kernel_size[0] // 2,) * 2
        # each part has one row or two
        and module.kernel_size[0] ** 2 > MAX_TAPS
        and 2 * module.kernel_size[0] <= MAX_TAPS
    )


def _part(conv: nn.Conv2d, rows: list[int], *, bias: bool) -> nn.Conv2d:
    dilation = rows[1] - rows[0] if len(rows) > 1 else 1
    part = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (len(rows), conv.kernel_size[1]),
        padding=((rows[-1] - rows[0]) // 2, conv.kernel_size[1] // 2),
        dilation=(dilation, 1),
        groups=conv.groups,
        bias=bias and conv.bias is not None,
        device="meta",
    )
    weight = conv.weight.detach()[:, :, torch.tensor(rows)].contiguous()
    part.weight = nn.Parameter(weight, requires_grad=False)
    if part.bias is not None:
        assert conv.bias is not None
        part.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
    return part
