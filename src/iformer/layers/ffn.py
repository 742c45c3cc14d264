"""The feed-forward network behind an attention."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from iformer.layers.conv_norm import ConvNorm, fold_conv
from iformer.layers.residual import ResidualAdd


class FFN(nn.Module):
    """`x + project(gelu(expand(x)))` with 1x1 convolutions, B x C x H x W to the same shape."""

    def __init__(self, *, expand: nn.Module, project: nn.Module, residual: ResidualAdd) -> None:
        super().__init__()
        self.expand = expand
        self.project = project
        self.residual = residual

    @classmethod
    def build(cls, channels: int, *, expansion_ratio: float, residual: ResidualAdd) -> Self:
        """A trainable network with `channels * expansion_ratio` hidden channels."""
        hidden = round(channels * expansion_ratio)
        return cls(expand=ConvNorm(channels, hidden, 1), project=ConvNorm(hidden, channels, 1), residual=residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.project(F.gelu(self.expand(x))))

    def fold(self) -> FFN:
        """The same function in eval mode with every norm and the layer scale inside the convolutions."""
        return FFN(
            expand=fold_conv(self.expand),
            project=fold_conv(self.project, self.residual.gamma),
            residual=self.residual.fold(),
        )
