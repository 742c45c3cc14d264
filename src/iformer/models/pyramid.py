"""Feature pyramids on the backbone, for detection and segmentation.

`Pyramid` is torchvision's FPN. `LightPyramid`, for phones, is made of depthwise-separable convolutions with batch
norm: top-down and then bottom-up paths as in PANet (Liu et al. 2018, arXiv 1803.01534), with additions in place of
concatenations. Batch norm folds into the convolutions, so nothing is normalised at run time.

Shape letters: B batch, C channels of the pyramid, H and W the image's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from iformer.config.light_detector import Neck
from iformer.layers.conv_norm import ConvNorm, fold_conv
from iformer.models.backbone import Backbone

Frozen = Literal["none", "norms", "weights"]


class FreezableBackbone(nn.Module):
    """A backbone, `body`, whose weights or norms can be frozen."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.body = backbone
        self._frozen: Frozen = "none"

    def freeze(self, what: Frozen) -> None:
        """Freeze parts of the backbone.

        Args:
            what: "norms" keeps statistics, scales and shifts of batch norms, because the statistics of a few large
                images are noisy. "weights" trains no parameter, while statistics adapt, so that even a random
                backbone computes features of a sound scale. "none" trains everything.
        """
        self._frozen = what
        for module in self.body.modules():
            is_norm = isinstance(module, nn.BatchNorm2d)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(what == "none" or (what == "norms" and not is_norm))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; frozen norms always use their running statistics."""
        super().train(mode)
        if self._frozen == "norms":
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class Pyramid(FreezableBackbone):
    """Backbone with four feature maps, followed by torchvision's FPN (Lin et al. 2017).

    `forward` maps B x 3 x H x W to a dict of maps B x C x H/s x W/s, s = 4, 8, 16, 32 under the names "0" to
    "3", and with `pooled` a fifth one, "pool", at stride 64.
    """

    def __init__(self, backbone: Backbone, channels: int, *, pooled: bool) -> None:
        super().__init__(backbone)
        self.fpn = FeaturePyramidNetwork(
            list(backbone.config.channels), channels, extra_blocks=LastLevelMaxPool() if pooled else None
        )
        self.out_channels = channels
        """Number of channels of every map; torchvision's detectors read this attribute."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        pyramid: dict[str, Tensor] = self.fpn({str(index): value for index, value in enumerate(maps)})
        return pyramid


class SeparableConv(nn.Module):
    """Depthwise K x K convolution, batch norm, ReLU; 1x1 convolution, batch norm, ReLU; `residual` adds the input.

    Shape: B x C_in x H x W to B x C_out x ceil(H / stride) x ceil(W / stride).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 5, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual and in_channels == out_channels and stride == 1
        self.depthwise: nn.Module = ConvNorm(
            in_channels, in_channels, kernel_size, stride=stride, groups=in_channels
        )
        self.pointwise: nn.Module = ConvNorm(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.pointwise(F.relu(self.depthwise(x))))
        return x + y if self.residual else y


class LightNeck(nn.Module):
    """Neck that brings the feature maps of any number of levels to C channels and mixes neighbouring levels.

    `paths` says how levels are mixed; see `iformer.config.light_detector.Neck`.

    Shape: maps B x C_i x H/s_i x W/s_i, finest first, each stride twice the one before; returns maps
    B x C x H/s_i x W/s_i, and with `extra_level` one more at twice the coarsest stride.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        kernel_size: int = 5,
        residual: bool = False,
        extra_level: bool = False,
        paths: Neck = "pan",
    ) -> None:
        super().__init__()
        self.paths = paths
        mixed = len(in_channels) - 1 if paths == "pan" else 0
        self.laterals = nn.ModuleList(ConvNorm(width, channels, 1) for width in in_channels)

        def blocks(count: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(
                SeparableConv(channels, channels, kernel_size=kernel_size, stride=stride, residual=residual)
                for _ in range(count)
            )

        self.top_down = blocks(mixed)
        self.downsample = blocks(mixed, stride=2)
        self.bottom_up = blocks(mixed)
        self.extra = blocks(1, stride=2) if extra_level else nn.ModuleList()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        outputs = [F.relu(lateral(x)) for lateral, x in zip(self.laterals, maps, strict=True)]
        if self.paths != "none":
            outputs = self._top_down(outputs)
        for level, (down, block) in enumerate(zip(self.downsample, self.bottom_up, strict=True), start=1):
            outputs[level] = block(outputs[level] + down(outputs[level - 1]))
        outputs += [block(outputs[-1]) for block in self.extra]
        return outputs

    def _top_down(self, maps: list[Tensor]) -> list[Tensor]:
        """Add to each map the coarser one, and with "pan" run a block on the sum."""
        outputs = maps[-1:]
        for step, x in enumerate(reversed(maps[:-1])):
            # a size, not a factor: an odd side was rounded up by the stride
            x = x + F.interpolate(outputs[0], size=x.shape[2:], mode="nearest")
            outputs.insert(0, self.top_down[step](x) if self.top_down else x)
        return outputs


class LightPyramid(FreezableBackbone):
    """Backbone and `LightNeck`, from stride `finest` to 32.

    Shape: B x 3 x H x W to maps B x C x H/s x W/s, s = finest, …, 32, and with `extra_level` 64.
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        *,
        kernel_size: int = 5,
        residual: bool = False,
        extra_level: bool = False,
        finest: Literal[4, 8] = 8,
        paths: Neck = "pan",
    ) -> None:
        super().__init__(backbone)
        self._skipped = 0 if finest == 4 else 1
        widths = backbone.config.channels[self._skipped :]
        self.neck = LightNeck(
            widths, channels, kernel_size=kernel_size, residual=residual, extra_level=extra_level, paths=paths
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.neck(self.body(x)[self._skipped :])


def fold_norms(module: nn.Module) -> None:
    """Replace every `ConvNorm` inside a module in eval mode by one convolution with bias, in place."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, fold_conv(child))
        else:
            fold_norms(child)
