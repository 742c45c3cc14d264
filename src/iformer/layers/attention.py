"""Single-head modulation attention, SHMA (Section 3.3, equations 2 and 3), and functions all operators share.

Shape letters: B batch, C channels, H and W the map's sides, L = H * W tokens, D = C / R channels of a
query or key.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.network import AttentionConfig
from iformer.layers.capture import is_capturing
from iformer.layers.conv_norm import ConvNorm, concatenate, fold_conv, frozen, pointwise
from iformer.layers.ffn import FFN
from iformer.layers.folded_conv import FoldedConv
from iformer.layers.norm import LayerNorm2d
from iformer.layers.operator import AttentionOperator
from iformer.layers.position import PositionEncoding
from iformer.layers.residual import ResidualAdd
from iformer.layers.windows import Windows

Modulation = Literal["value", "output"]
Activation = Literal["sigmoid", "silu"]


def tokens(x_BCHW: Tensor) -> Tensor:
    """Return a map, B x C x H x W, as tokens, B x L x C. The result is a view in either memory format."""
    # permute first: the gradient of `flatten(2).transpose(1, 2)` has strides for which the CPU's batch norm
    # gives a wrong gradient at batch 1 (torch 2.15)
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def feature_map(x_BLC: Tensor, like_BCHW: Tensor) -> Tensor:
    """Return tokens, B x L x C, as a map with the H and W of `like_BCHW`: the inverse of `tokens`."""
    batch, _, height, width = like_BCHW.shape
    channels = -1 if is_capturing() else x_BLC.shape[2]  # -1 is open in an empty batch, and a constant in graphs
    return x_BLC.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


_MANY_TOKENS = 196
"""Smallest number of keys for which GPUs use the fused kernel. Smaller numbers were not measured
(`docs/benchmarks/gpu.md`)."""


def attend(q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor, windows: Windows | None = None) -> Tensor:
    """Return softmax(q k^T) v, B x L x C. The query must include the factor 1/sqrt(D).

    With windows, the tokens are those of a strip, and each token attends to the keys of its window.
    """
    if windows is None:
        return _attention(q_BLD, k_BLD, v_BLC)
    q_BLD, k_BLD = windows.mask(q_BLD, k_BLD)
    return windows.merge(_attention(windows.split(q_BLD), windows.split(k_BLD), windows.split(v_BLC)))


def _attention(q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor) -> Tensor:
    return (fused_attention if _has_fused_kernel(k_BLD) else stored_attention)(q_BLD, k_BLD, v_BLC)


def _has_fused_kernel(k_BLD: Tensor) -> bool:
    """Return whether to use the fused kernel: GPU inference with many tokens."""
    return (
        isinstance(k_BLD, Tensor)  # and not the proxy of a symbolic trace
        and not is_capturing()
        and k_BLD.device.type == "cuda"
        and k_BLD.dtype in (torch.bfloat16, torch.float16)
        and k_BLD.shape[1] >= _MANY_TOKENS
        and not torch.is_grad_enabled()
    )


def stored_attention(q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor) -> Tensor:
    """Return softmax(q k^T) v with the L x L scores in memory."""
    # Not `scaled_dot_product_attention`: one head of few tokens gains nothing from the fused kernel, which adds
    # transposes to exported graphs. `bmm` and not `@`: its broadcasting leaves copies in ExecuTorch's graphs and
    # hides the attention from OpenVINO's fusion.
    return torch.bmm(torch.bmm(q_BLD, k_BLD.transpose(1, 2)).softmax(dim=-1), v_BLC)


def fused_attention(q_BLD: Tensor, k_BLD: Tensor, v_BLC: Tensor) -> Tensor:
    """Return softmax(q k^T) v by PyTorch's fused kernel, whose memory grows with L and not with L * L."""
    q, k, v = (tensor.unsqueeze(1) for tensor in (q_BLD, k_BLD, v_BLC))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)


def modulated_attention(
    q_BLD: Tensor,
    k_BLD: Tensor,
    v_BLC: Tensor,
    gate_BLC: Tensor,
    modulation: Modulation,
    activation: Activation = "sigmoid",
    windows: Windows | None = None,
) -> Tensor:
    """Return the attention's output times activation(gate), B x L x C.

    The value branch has an activation too: on v, as in the released networks (`modulation` "value"), or on the
    attention's output, as equation 3 is printed ("output").
    """
    activate = torch.sigmoid if activation == "sigmoid" else F.silu
    if modulation == "value":
        return attend(q_BLD, k_BLD, activate(v_BLC), windows) * activate(gate_BLC)
    return activate(attend(q_BLD, k_BLD, v_BLC, windows)) * activate(gate_BLC)


class SHMA(AttentionOperator):
    """`x + proj(attention(q, k, sigmoid(v)) * sigmoid(gate))`, B x C x H x W to the same shape.

    With `norm_placement="pre_ln"` q, k, v and gate are computed from the layer norm of x, and the convolutions
    have no norm (Table 6). With windows, x is a strip, and attention stays within each window.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        super().__init__(channels, config, residual=residual)
        head_dim = channels // config.reduction
        self.scale = head_dim**-0.5
        self.modulation: Modulation = config.modulation
        self.activation: Activation = config.activation
        post_norm = config.norm_placement == "post_bn"
        self.norm = nn.Identity() if post_norm else LayerNorm2d(channels)
        conv = partial(pointwise, norm="batch" if post_norm else "layer")
        self.q = conv(channels, head_dim)
        self.k = conv(channels, head_dim)
        self.v_gate = conv(channels, 2 * channels)
        self.proj = conv(channels, channels)
        self.residual = residual

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        normed = self.norm(x)
        q_BLD = tokens(self.q(normed)) * self.scale
        k_BLD = tokens(self.k(normed))
        v_BLC, gate_BLC = tokens(self.v_gate(normed)).chunk(2, dim=2)
        y_BLC = modulated_attention(q_BLD, k_BLD, v_BLC, gate_BLC, self.modulation, self.activation, windows)
        return self.residual(x, self.proj(feature_map(y_BLC, x)))

    def fold(self) -> FoldedSHMA:
        """Return the attention for inference, with one convolution for q, k, v and gate."""
        return FoldedSHMA(
            norm=frozen(self.norm),
            qkvg=concatenate([fold_query(self.q, self.scale), fold_conv(self.k), fold_conv(self.v_gate)]),
            proj=fold_conv(self.proj, self.residual.gamma),
            modulation=self.modulation,
            activation=self.activation,
        )


class FoldedSHMA(nn.Module):
    """SHMA for inference: one 1x1 convolution computes q (scaled), k, v and gate."""

    def __init__(
        self,
        *,
        norm: nn.Module,
        qkvg: nn.Conv2d,
        proj: FoldedConv,
        modulation: Modulation,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.qkvg = qkvg
        self.proj = proj
        self.modulation: Modulation = modulation
        self.activation: Activation = activation
        channels = proj.in_channels
        head_dim = (qkvg.out_channels - 2 * channels) // 2
        self.split_sizes = [head_dim, head_dim, channels, channels]

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        qkvg_BLE = tokens(self.qkvg(self.norm(x)))
        q_BLD, k_BLD, v_BLC, gate_BLC = torch.split(qkvg_BLE, self.split_sizes, dim=2)
        y_BLC = modulated_attention(q_BLD, k_BLD, v_BLC, gate_BLC, self.modulation, self.activation, windows)
        return self.proj.add_to(x, feature_map(y_BLC, x))


def fold_query(q: nn.Module, scale: float) -> FoldedConv:
    """Return a convolution that computes `scale * q(x)` in eval mode."""
    bias = q.norm.bias if isinstance(q, ConvNorm) else q.bias
    assert isinstance(bias, Tensor)
    return fold_conv(q, torch.full_like(bias.detach(), scale, dtype=torch.double))


class AttentionBlock(nn.Module):
    """Position encoding, attention, then FFN; B x C x H x W to the same shape (Section 3.3).

    With windows, a block maps a strip (`iformer.layers.windows`) to a strip. In a run of such blocks, the first
    one takes a map and cuts it after its position encoding (`cut`), and the last one joins the strip after its
    attention (`join`).
    """

    def __init__(self, *, position: nn.Module, attention: nn.Module, ffn: FFN) -> None:
        super().__init__()
        self.position = position
        self.attention = attention
        self.ffn = ffn

    def forward(
        self, x: Tensor, windows: Windows | None = None, *, cut: bool = False, join: bool = False
    ) -> Tensor:
        if windows is None:
            return self.ffn(self.attention(self.position(x)))
        if cut:
            x = windows.cut(self.position(x))
        elif not isinstance(self.position, nn.Identity):
            x = self.position(windows.without_padding(x), windows)
        x = self.attention(x, windows)
        # the FFN works on single tokens: joined first, it does not compute the padding
        return self.ffn(windows.join(x) if join else x)

    def fold(self) -> AttentionBlock:
        """Return the block for inference, with each module folded."""
        position, attention = self.position, self.attention
        assert isinstance(attention, AttentionOperator)
        return AttentionBlock(
            position=position.fold() if isinstance(position, PositionEncoding) else nn.Identity(),
            attention=attention.fold(),
            ffn=self.ffn.fold(),
        )
