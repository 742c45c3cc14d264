"""Attention maps of the last stage that has attention.

Shape letters: B batch, H height and W width of the stage's feature map, L = H * W tokens, D channels of a query or
key.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.errors import UserError
from iformer.layers.attention import SHMA, tokens
from iformer.layers.sha import SHA
from iformer.models.backbone import Backbone

# control points of matplotlib's "inferno": its lightness rises evenly
_HEAT = np.array(
    [[0, 0, 4], [51, 10, 95], [120, 28, 109], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]],
    dtype=np.float32,
)


class AttentionRecorder:
    """Context manager that records how much attention each location receives in the last attention stage.

    The map of a block is its attention matrix softmax(q k^T / sqrt(D)), L x L, averaged over the queries and
    multiplied by L. A value of 1 is an even share, a value of 3 three times an even share. The classifier head
    averages over all locations, so the mean over the queries is the weight with which a location contributes to
    the input of the head. The map of the stage is the mean over its blocks.

    The map shows where the attention reads. It does not explain the prediction, because the convolutions and the
    modulation are not part of it.

    Queries and keys are read by forward hooks; the network's `forward` is not changed.
    """

    def __init__(self, model: Backbone) -> None:
        """Find the attention blocks of the last stage that has any.

        Args:
            model: a network that is not folded.

        Raises:
            UserError: the network is folded or has no single-head attention.
        """
        stages = [[m for m in stage.modules() if isinstance(m, SHMA | SHA)] for stage in model.stages]
        blocks = [blocks for blocks in stages if blocks]
        if not blocks:
            raise UserError("no attention to show: the network is folded or has no single-head attention blocks")
        self._blocks = blocks[-1]
        self._handles: list[Any] = []
        self._maps: list[Tensor] = []

    def __enter__(self) -> Self:
        for block in self._blocks:
            queries: list[Tensor] = []
            self._handles += [
                block.q.register_forward_hook(_keep(queries)),
                block.k.register_forward_hook(self._finish(block, queries)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take_maps(self) -> Tensor:
        """Return the maps of the last forward pass, float32 B x H x W with mean 1 each, and clear them.

        Raises:
            UserError: no forward pass was recorded.
        """
        if not self._maps:
            raise UserError("no forward pass was recorded")
        maps_BHW = torch.stack(self._maps).mean(0)
        self._maps.clear()
        return maps_BHW

    def _finish(self, block: SHMA | SHA, queries: list[Tensor]) -> Any:
        def hook(_module: nn.Module, _inputs: Any, k_BDHW: Tensor) -> None:
            q_BLD = tokens(queries.pop()) * block.scale
            attention_BLL = (q_BLD @ tokens(k_BDHW).transpose(1, 2)).softmax(dim=-1)
            received_BL = attention_BLL.mean(1) * attention_BLL.shape[2]
            self._maps.append(received_BL.float().unflatten(1, k_BDHW.shape[2:]))

        return hook


def overlay(photograph: Image.Image, attention_hw: Tensor) -> Image.Image:
    """Draw an attention map as a heat map over the grayscale image.

    Args:
        photograph: the image.
        attention_hw: a map of `AttentionRecorder`, H x W; it is resized to the image.

    Returns:
        An RGB image of the same size. Dark: an even share of the attention or less. Brightest: the maximum of the
        map, or twice an even share if the maximum is lower.
    """
    received = attention_hw.numpy().astype(np.float32)
    # an almost even map must not be stretched to full contrast
    heat = (received - 1) / max(float(received.max()) - 1, 1.0)
    smooth = Image.fromarray(heat).resize(photograph.size, Image.Resampling.BICUBIC)
    value = np.asarray(smooth, dtype=np.float32).clip(0, 1)
    return _tinted(np.asarray(photograph.convert("L"), dtype=np.float32), value)


def heat_scale(size: tuple[int, int]) -> Image.Image:
    """Draw the colour scale of `overlay` on medium gray, from an even share (left) to the brightest (right).

    Args:
        size: width and height in pixels.
    """
    value = np.broadcast_to(np.linspace(0, 1, size[0], dtype=np.float32), size[::-1])
    return _tinted(np.full(value.shape, 128, np.float32), value)


def _tinted(gray: npt.NDArray[np.float32], value: npt.NDArray[np.float32]) -> Image.Image:
    """Blend gray values, 0 to 255, with the colours of heat values, 0 to 1."""
    position = value * (len(_HEAT) - 1)
    low = np.minimum(position.astype(np.int64), len(_HEAT) - 2)
    colour = _HEAT[low] + (_HEAT[low + 1] - _HEAT[low]) * (position - low)[..., None]
    opacity = (0.25 + 0.5 * value)[..., None]
    return Image.fromarray((gray[..., None] * (1 - opacity) + colour * opacity).clip(0, 255).astype(np.uint8))


def _keep(queries: list[Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, q_BDHW: Tensor) -> None:
        queries.append(q_BDHW)

    return hook
