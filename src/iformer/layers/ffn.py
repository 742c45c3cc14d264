"""The feed-forward network after an attention."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from iformer.layers.conv_norm import ConvNorm, fold_conv
from iformer.layers.expanded import build_expanded, fold_expanded
from iformer.layers.residual import ResidualAdd


class FFN(nn.Module):
    """`x + project(expanded(gelu(expand(x))))` with 1x1 convolutions, B x C x H x W to the same shape.

    `expanded` is the identity except in Table 11; see `iformer.layers.expanded`.
    """

    def __init__(
        self, *, expand: nn.Module, expanded: nn.Module, project: nn.Module, residual: ResidualAdd
    ) -> None:
        super().__init__()
        self.expand = expand
        self.expanded = expanded
        self.project = project
        self.residual = residual

    @classmethod
    def build(
        cls,
        channels: int,
        *,
        expansion_ratio: float,
        residual: ResidualAdd,
        expanded_kernel_size: int | None = None,
    ) -> Self:
        """Build a trainable FFN with `channels * expansion_ratio` hidden channels."""
        hidden = round(channels * expansion_ratio)
        return cls(
            expand=ConvNorm(channels, hidden, 1),
            expanded=build_expanded(hidden, expanded_kernel_size),
            project=ConvNorm(hidden, channels, 1),
            residual=residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual.add_mlp(x, x, self.expand, self.expanded, self.project)

    def fold(self) -> FFN:
        """Return the FFN for inference, with norms and layer scale inside the convolutions."""
        return FFN(
            expand=fold_conv(self.expand),
            expanded=fold_expanded(self.expanded),
            project=fold_conv(self.project, self.residual.gamma),
            residual=self.residual.fold(),
        )
