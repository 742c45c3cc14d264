"""Single-head attention on a share of the channels, as in SHViT (the steps of Table 14).

Shape letters: B batch, C channels, S = C * share attended channels, L = H * W tokens, D = S / R channels of a
query or key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.config.network import AttentionConfig
from iformer.layers.attention import attend, feature_map, tokens
from iformer.layers.conv_norm import ConvNorm
from iformer.layers.folded_conv import FoldedConv
from iformer.layers.operator import AttentionOperator
from iformer.layers.residual import ResidualAdd


class SHViTAttention(AttentionOperator):
    """`x + proj(attention over the first S channels)`, B x C x H x W to the same shape.

    One convolution computes q, k and v. With `concat` the input of the projection is the attention's output
    followed by the other C - S channels.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        super().__init__(channels, config, residual=residual)
        attended = config.attended_channels(channels)
        self.head_dim = attended // config.reduction
        self.scale = self.head_dim**-0.5
        self.channel_sizes = [attended, channels - attended]
        self.qkv = ConvNorm(attended, 2 * self.head_dim + attended, 1)
        self.proj = ConvNorm(channels if config.concat else attended, channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        attended, passed = torch.split(x, self.channel_sizes, dim=1)
        sizes = _split_sizes(self.qkv.conv, self.head_dim)
        q_BLD, k_BLD, v_BLS = torch.split(tokens(self.qkv(attended)), sizes, dim=2)
        y = feature_map(attend(q_BLD * self.scale, k_BLD, v_BLS), x)
        return self.residual(x, self.proj(_with_passed(y, passed, self.proj.conv)))

    def fold(self) -> FoldedSHViTAttention:
        """Return the attention for inference, with 1/sqrt(D) inside the convolution."""
        weight = self.qkv.conv.weight
        gain = torch.ones(weight.shape[0], dtype=torch.double, device=weight.device)
        gain[: self.head_dim] = self.scale
        return FoldedSHViTAttention(
            qkv=self.qkv.fold(gain),
            proj=self.proj.fold(self.residual.gamma),
            head_dim=self.head_dim,
            channel_sizes=self.channel_sizes,
        )


class FoldedSHViTAttention(nn.Module):
    """`SHViTAttention` for inference: one 1x1 convolution computes q (scaled), k and v."""

    def __init__(self, *, qkv: nn.Conv2d, proj: FoldedConv, head_dim: int, channel_sizes: list[int]) -> None:
        super().__init__()
        self.qkv = qkv
        self.proj = proj
        self.head_dim = head_dim
        self.channel_sizes = channel_sizes

    def forward(self, x: Tensor) -> Tensor:
        attended, passed = torch.split(x, self.channel_sizes, dim=1)
        q_BLD, k_BLD, v_BLS = torch.split(tokens(self.qkv(attended)), _split_sizes(self.qkv, self.head_dim), dim=2)
        y = feature_map(attend(q_BLD, k_BLD, v_BLS), x)
        return self.proj.add_to(x, _with_passed(y, passed, self.proj))


def _split_sizes(qkv: nn.Conv2d, head_dim: int) -> list[int]:
    return [head_dim, head_dim, qkv.out_channels - 2 * head_dim]


def _with_passed(y: Tensor, passed: Tensor, proj: nn.Conv2d) -> Tensor:
    """Return the input of the projection: with `concat` the attention's channels followed by the others."""
    return torch.cat([y, passed], dim=1) if proj.in_channels > y.shape[1] else y
