"""Single-head modulation attention, SHMA (Section 3.3, equations 2 and 3).

Shape letters: B batch, C channels, H and W the map's sides, L = H * W tokens, D = C / R channels of a
query or key.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from iformer.layers.conv_norm import ConvNorm, concatenate
from iformer.layers.ffn import FFN
from iformer.layers.position import PositionEncoding
from iformer.layers.residual import ResidualAdd

Modulation = Literal["value", "output"]


def tokens(x_BCHW: Tensor) -> Tensor:
    """B x C x H x W as B x L x C: a view in either memory format.

    By `permute` first, because the gradient of `flatten(2).transpose(1, 2)` has strides for which the
    CPU's batch norm gives a wrong gradient at batch 1 (torch 2.15).
    """
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def feature_map(x_BLC: Tensor, like_BCHW: Tensor) -> Tensor:
    """The inverse of `tokens`: B x L x C as B x C x H x W, H and W those of `like`."""
    batch, _, height, width = like_BCHW.shape
    return x_BLC.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def attend(q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor) -> Tensor:
    """softmax(q k^T) v over the keys, B x L x C; the 1/sqrt(D) is already in q.

    Explicit products rather than `scaled_dot_product_attention`: one head of few tokens gains nothing
    from the fused kernel, and the fused form adds transposes to exported graphs.
    """
    attention_BLL = (q_BLD @ k_BLD.transpose(1, 2)).softmax(dim=-1)
    return attention_BLL @ v_BLC


def modulated_attention(
    q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor, gate_BLC: Tensor, modulation: Modulation
) -> Tensor:
    """The attention's output times sigmoid(gate), B x L x C.

    The value branch has its own sigmoid: on v, as in the released networks ("value"), or on the
    attention's output, as equation 3 is printed ("output").
    """
    if modulation == "value":
        return attend(q_BLD, k_BLD, v_BLC.sigmoid()) * gate_BLC.sigmoid()
    return attend(q_BLD, k_BLD, v_BLC).sigmoid() * gate_BLC.sigmoid()


class SHMA(nn.Module):
    """`x + proj(attention(q, k, sigmoid(v)) * sigmoid(gate))`, B x C x H x W to the same shape."""

    def __init__(self, channels: int, *, reduction: int, modulation: Modulation, residual: ResidualAdd) -> None:
        super().__init__()
        head_dim = channels // reduction
        self.scale = head_dim**-0.5
        self.modulation: Modulation = modulation
        self.q = ConvNorm(channels, head_dim, 1)
        self.k = ConvNorm(channels, head_dim, 1)
        self.v_gate = ConvNorm(channels, 2 * channels, 1)
        self.proj = ConvNorm(channels, channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        q_BLD = tokens(self.q(x)) * self.scale
        k_BLD = tokens(self.k(x))
        v_BLC, gate_BLC = tokens(self.v_gate(x)).chunk(2, dim=2)
        y_BLC = modulated_attention(q_BLD, k_BLD, v_BLC, gate_BLC, self.modulation)
        return self.residual(x, self.proj(feature_map(y_BLC, x)))

    def fold(self) -> FoldedSHMA:
        """The same function in eval mode with one convolution for q, k, v and gate."""
        q = self.q.fold(
            torch.full(
                (self.q.conv.out_channels,), self.scale, dtype=torch.double, device=self.q.conv.weight.device
            )
        )
        return FoldedSHMA(
            qkvg=concatenate([q, self.k.fold(), self.v_gate.fold()]),
            proj=self.proj.fold(self.residual.gamma),
            modulation=self.modulation,
        )


class FoldedSHMA(nn.Module):
    """SHMA for inference: one 1x1 convolution gives q (scaled), k, v and gate."""

    def __init__(self, *, qkvg: nn.Conv2d, proj: nn.Conv2d, modulation: Modulation) -> None:
        super().__init__()
        self.qkvg = qkvg
        self.proj = proj
        self.modulation: Modulation = modulation
        channels = proj.in_channels
        head_dim = (qkvg.out_channels - 2 * channels) // 2
        self.split_sizes = [head_dim, head_dim, channels, channels]

    def forward(self, x: Tensor) -> Tensor:
        q_BLD, k_BLD, v_BLC, gate_BLC = torch.split(tokens(self.qkvg(x)), self.split_sizes, dim=2)
        y_BLC = modulated_attention(q_BLD, k_BLD, v_BLC, gate_BLC, self.modulation)
        return x + self.proj(feature_map(y_BLC, x))


class AttentionBlock(nn.Module):
    """Position encoding, SHMA, then FFN; B x C x H x W to the same shape (Section 3.3)."""

    def __init__(self, *, position: nn.Module, attention: nn.Module, ffn: FFN) -> None:
        super().__init__()
        self.position = position
        self.attention = attention
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(self.position(x)))

    def fold(self) -> AttentionBlock:
        """The same function in eval mode, each part folded."""
        position, attention = self.position, self.attention
        assert isinstance(attention, SHMA)
        return AttentionBlock(
            position=position.fold() if isinstance(position, PositionEncoding) else nn.Identity(),
            attention=attention.fold(),
            ffn=self.ffn.fold(),
        )
