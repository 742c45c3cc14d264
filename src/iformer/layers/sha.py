"""Single-head attention without modulation, the baseline of Tables 1, 7 and 14.

Shape letters: B batch, C channels, L = H * W tokens, D = C / R channels of a query or key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.config.network import AttentionConfig
from iformer.layers.attention import attend, feature_map, fold_query, tokens
from iformer.layers.conv_norm import ConvNorm, concatenate
from iformer.layers.folded_conv import FoldedConv
from iformer.layers.operator import AttentionOperator
from iformer.layers.residual import ResidualAdd


class SHA(AttentionOperator):
    """`x + proj(softmax(q k^T / sqrt(D)) v)` with one head, B x C x H x W to the same shape."""

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        super().__init__(channels, config, residual=residual)
        head_dim = channels // config.reduction
        self.scale = head_dim**-0.5
        self.q = ConvNorm(channels, head_dim, 1)
        self.k = ConvNorm(channels, head_dim, 1)
        self.v = ConvNorm(channels, channels, 1)
        self.proj = ConvNorm(channels, channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        q_BLD, k_BLD, v_BLC = tokens(self.q(x)) * self.scale, tokens(self.k(x)), tokens(self.v(x))
        return self.residual(x, self.proj(feature_map(attend(q_BLD, k_BLD, v_BLC), x)))

    def fold(self) -> FoldedSHA:
        """Return the attention for inference, with one convolution for q, k and v."""
        return FoldedSHA(
            qkv=concatenate([fold_query(self.q, self.scale), self.k.fold(), self.v.fold()]),
            proj=self.proj.fold(self.residual.gamma),
        )


class FoldedSHA(nn.Module):
    """SHA for inference: one 1x1 convolution computes q (scaled), k and v."""

    def __init__(self, *, qkv: nn.Conv2d, proj: FoldedConv) -> None:
        super().__init__()
        self.qkv = qkv
        self.proj = proj
        head_dim = (qkv.out_channels - proj.in_channels) // 2
        self.split_sizes = [head_dim, head_dim, proj.in_channels]

    def forward(self, x: Tensor) -> Tensor:
        q_BLD, k_BLD, v_BLC = torch.split(tokens(self.qkv(x)), self.split_sizes, dim=2)
        return self.proj.add_to(x, feature_map(attend(q_BLD, k_BLD, v_BLC), x))
