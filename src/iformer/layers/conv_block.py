"""The convolution block (Section 3.2: a ConvNeXt block, with batch norm in iFormer)."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from iformer.layers.conv_norm import Norm, conv_norm, fold_conv, fold_part, pointwise
from iformer.layers.expanded import build_expanded, fold_expanded
from iformer.layers.residual import ResidualAdd


class ConvBlock(nn.Module):
    """`x + project(expanded(gelu(expand(depthwise(x)))))`, B x C x H x W to the same shape.

    `expanded` is the identity except in Table 11; see `iformer.layers.expanded`.
    """

    def __init__(
        self,
        *,
        depthwise: nn.Module,
        expand: nn.Module,
        expanded: nn.Module,
        project: nn.Module,
        residual: ResidualAdd,
    ) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.expand = expand
        self.expanded = expanded
        self.project = project
        self.residual = residual

    @classmethod
    def build(
        cls,
        channels: int,
        *,
        kernel_size: int,
        expansion_ratio: float,
        residual: ResidualAdd,
        expanded_kernel_size: int | None = None,
        norm: Norm = "batch",
    ) -> Self:
        """Build a trainable block with `channels * expansion_ratio` expanded channels.

        With `norm="layer"` the only norm follows the depthwise convolution, as in ConvNeXt.
        """
        hidden = round(channels * expansion_ratio)
        return cls(
            depthwise=conv_norm(channels, channels, kernel_size, groups=channels, norm=norm),
            expand=pointwise(channels, hidden, norm=norm),
            expanded=build_expanded(hidden, expanded_kernel_size, norm=norm),
            project=pointwise(hidden, channels, norm=norm),
            residual=residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual.add_mlp(x, self.depthwise(x), self.expand, self.expanded, self.project)

    def fold(self) -> ConvBlock:
        """Return the block for inference, with batch norms and layer scale inside the convolutions."""
        return ConvBlock(
            depthwise=fold_part(self.depthwise),
            expand=fold_conv(self.expand),
            expanded=fold_expanded(self.expanded),
            project=fold_conv(self.project, self.residual.gamma),
            residual=self.residual.fold(),
        )
