"""Where the last attention stage looks.

Shape letters: B batch, H and W sides of the stage's map, L = H * W tokens, D channels of a query or key.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.errors import UserError
from iformer.layers.attention import SHMA, tokens
from iformer.layers.sha import SHA
from iformer.models.backbone import Backbone

# control points of matplotlib's "inferno", whose lightness grows evenly
_HEAT = np.array(
    [[0, 0, 4], [51, 10, 95], [120, 28, 109], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]],
    dtype=np.float32,
)


class AttentionRecorder:
    """Records, while it is entered, how much attention each place receives in the last attention stage.

    The map of one block is its attention matrix softmax(q k^T / sqrt(D)), L x L, averaged over the
    queries and times L: 1 where a place receives an even share, 3 where it receives three times that. The
    head averages the last map over all places with equal weight, so the mean over the queries is the share
    that a place's value has in what the head reads from this block. `maps` is the mean over the stage's
    blocks. It shows where the attention reads, not why the network answers as it does: the convolutions
    and the modulation gates beside it are not in the picture.

    The blocks' queries and keys are read by hooks; `forward` is the network's own.
    """

    def __init__(self, model: Backbone) -> None:
        """`model` is a network that is not folded.

        Raises:
            UserError: the network is folded or has no single-head attention.
        """
        stages = [[m for m in stage.modules() if isinstance(m, SHMA | SHA)] for stage in model.stages]
        blocks = [blocks for blocks in stages if blocks]
        if not blocks:
            raise UserError("this network has no attention blocks of one head to look at, or is folded")
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take_maps(self) -> Tensor:
        """The maps of the last forward pass, B x H x W float32, mean 1 each; they are forgotten here."""
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
    """Draw a heat map of the attention that each place receives on a photograph in gray.

    Dark: an even share or less. Brightest: the most attended place, if that receives twice an even share or
    more.
    """
    received = attention_hw.numpy().astype(np.float32)
    # an almost even map must not be stretched into a picture of something
    heat = (received - 1) / max(float(received.max()) - 1, 1.0)
    smooth = Image.fromarray(heat).resize(photograph.size, Image.Resampling.BICUBIC)
    value = np.asarray(smooth, dtype=np.float32).clip(0, 1)
    position = value * (len(_HEAT) - 1)
    low = np.minimum(position.astype(np.int64), len(_HEAT) - 2)
    colour = _HEAT[low] + (_HEAT[low + 1] - _HEAT[low]) * (position - low)[..., None]
    gray = np.asarray(photograph.convert("L"), dtype=np.float32)[..., None]
    opacity = (0.25 + 0.5 * value)[..., None]
    return Image.fromarray((gray * (1 - opacity) + colour * opacity).clip(0, 255).astype(np.uint8))


def _keep(queries: list[Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, q_BDHW: Tensor) -> None:
        queries.append(q_BDHW)

    return hook
