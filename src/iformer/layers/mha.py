"""Multi-head attention, the baseline of Table 1.

Shape letters: B batch, C channels, L = H * W tokens, N heads, D = C / (R * N) channels of a head's query or
key, E = C / N channels of its values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.config.network import AttentionConfig
from iformer.layers.attention import feature_map, fold_query, tokens
from iformer.layers.conv_norm import ConvNorm, concatenate
from iformer.layers.folded_conv import FoldedConv
from iformer.layers.operator import AttentionOperator
from iformer.layers.residual import ResidualAdd


def split_heads(x_BLC: Tensor, heads: int) -> Tensor:
    """Return tokens, B x L x C, by head, B x N x L x C/N.

    This reshape makes many heads slow on phones (Section 3.3).
    """
    batch, length, channels = x_BLC.shape
    return x_BLC.reshape(batch, length, heads, channels // heads).transpose(1, 2)


def attend_heads(q_BLC: Tensor, k_BLC: Tensor, v_BLC: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T) v of all heads, B x L x C. The query must include the factor 1/sqrt(D)."""
    q_BNLD, k_BNLD, v_BNLE = (split_heads(x, heads) for x in (q_BLC, k_BLC, v_BLC))
    attention_BNLL = (q_BNLD @ k_BNLD.transpose(2, 3)).softmax(dim=-1)
    return (attention_BNLL @ v_BNLE).transpose(1, 2).flatten(2)


class MHA(AttentionOperator):
    """`x + proj(concatenated heads of softmax(q k^T / sqrt(D)) v)`, B x C x H x W to the same shape."""

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        super().__init__(channels, config, residual=residual)
        query_channels = channels // config.reduction
        self.heads = query_channels // config.head_dim
        self.scale = config.head_dim**-0.5
        self.q = ConvNorm(channels, query_channels, 1)
        self.k = ConvNorm(channels, query_channels, 1)
        self.v = ConvNorm(channels, channels, 1)
        self.proj = ConvNorm(channels, channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        q_BLC, k_BLC, v_BLC = tokens(self.q(x)) * self.scale, tokens(self.k(x)), tokens(self.v(x))
        y_BLC = attend_heads(q_BLC, k_BLC, v_BLC, self.heads)
        return self.residual(x, self.proj(feature_map(y_BLC, x)))

    def fold(self) -> FoldedMHA:
        """Return the attention for inference, with one convolution for q, k and v."""
        return FoldedMHA(
            qkv=concatenate([fold_query(self.q, self.scale), self.k.fold(), self.v.fold()]),
            proj=self.proj.fold(self.residual.gamma),
            heads=self.heads,
        )


class FoldedMHA(nn.Module):
    """MHA for inference: one 1x1 convolution computes q (scaled), k and v of all heads."""

    def __init__(self, *, qkv: nn.Conv2d, proj: FoldedConv, heads: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.proj = proj
        self.heads = heads
        query_channels = (qkv.out_channels - proj.in_channels) // 2
        self.split_sizes = [query_channels, query_channels, proj.in_channels]

    def forward(self, x: Tensor) -> Tensor:
        q_BLC, k_BLC, v_BLC = torch.split(tokens(self.qkv(x)), self.split_sizes, dim=2)
        return self.proj.add_to(x, feature_map(attend_heads(q_BLC, k_BLC, v_BLC, self.heads), x))
