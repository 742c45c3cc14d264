"""The convolution block (Section 3.2: a ConvNeXt block with batch norm)."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from iformer.layers.conv_norm import ConvNorm, fold_conv
from iformer.layers.residual import ResidualAdd


class ConvBlock(nn.Module):
    """`x + project(gelu(expand(depthwise(x))))`, B x C x H x W to the same shape."""

    def __init__(
        self, *, depthwise: nn.Module, expand: nn.Module, project: nn.Module, residual: ResidualAdd
    ) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.expand = expand
        self.project = project
        self.residual = residual

    @classmethod
    def build(cls, channels: int, *, kernel_size: int, expansion_ratio: float, residual: ResidualAdd) -> Self:
        """A trainable block: a `kernel_size` depthwise convolution, then 1x1 up by the ratio and down."""
        hidden = round(channels * expansion_ratio)
        return cls(
            depthwise=ConvNorm(channels, channels, kernel_size, groups=channels),
            expand=ConvNorm(channels, hidden, 1),
            project=ConvNorm(hidden, channels, 1),
            residual=residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.project(F.gelu(self.expand(self.depthwise(x)))))

    def fold(self) -> ConvBlock:
        """The same function in eval mode with every norm and the layer scale inside the convolutions."""
        return ConvBlock(
            depthwise=fold_conv(self.depthwise),
            expand=fold_conv(self.expand),
            project=fold_conv(self.project, self.residual.gamma),
            residual=self.residual.fold(),
        )
