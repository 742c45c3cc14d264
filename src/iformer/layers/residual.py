"""The sum at the end of every residual block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.folded_conv import FoldedConv, conv_gelu
from iformer.layers.sliced import add_in_slices, is_large


class ResidualAdd(nn.Module):
    """`x + drop_path(gamma * branch)`, where gamma (layer scale, shape C) and drop_path are optional.

    Source: stochastic depth and layer scale of Table 9.
    """

    def __init__(self, channels: int, *, drop_path: float = 0.0, layer_scale_init: float | None = None) -> None:
        super().__init__()
        self.gamma = None if layer_scale_init is None else nn.Parameter(torch.full((channels,), layer_scale_init))
        self.drop_path: nn.Module = nn.Identity()
        if drop_path > 0:
            from torchvision.ops import StochasticDepth  # deferred: importing torchvision.ops takes seconds

            self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add `branch` to `x`; both are B x C x H x W."""
        if self.gamma is not None:
            branch = branch * self.gamma[:, None, None]
        return x + self.drop_path(branch)

    def add_conv(self, x: Tensor, conv: nn.Module, hidden: Tensor) -> Tensor:
        """Return `self(x, conv(hidden))`; a folded convolution adds x by `FoldedConv.add_to`."""
        return conv.add_to(x, hidden) if isinstance(conv, FoldedConv) else self(x, conv(hidden))

    def add_mlp(self, x: Tensor, y: Tensor, expand: nn.Module, expanded: nn.Module, project: nn.Module) -> Tensor:
        """Return `self(x, project(expanded(gelu(expand(y)))))`; see `iformer.layers.sliced` for large maps."""
        if (
            isinstance(expand, FoldedConv)
            and isinstance(project, FoldedConv)
            and isinstance(expanded, nn.Identity)
            and is_large(expand, project, y)
        ):
            return add_in_slices(x, y, expand, project)
        return self.add_conv(x, project, expanded(conv_gelu(expand, y)))

    def fold(self) -> ResidualAdd:
        """Return the plain sum for inference; the caller folds gamma into the convolution before the sum."""
        return ResidualAdd(0)
