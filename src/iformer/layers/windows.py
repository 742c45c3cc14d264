"""Windows of a large feature map, for attention whose cost grows linearly with the map.

Between `cut` and `join` the windows of an image are stacked vertically in a strip. Operations on single tokens
(1x1 convolutions, norms, sums) work on a strip as on a map, operations on neighbours need `convolve` or `split`.
Only pads, splits and concatenations with four axes are used, which every runtime has.

Shape letters: B batch, C channels, H and W the map's sides, P a window's side, N windows of an image,
L = P * P tokens of a window, D channels of a query, key or value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.network import WindowConfig
from iformer.layers.capture import is_capturing

_NEVER = -1e4
"""Number added to the score of a masked key, so that the key's softmax weight is 0, also in half precision."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Division of feature maps of one size into windows."""

    config: WindowConfig
    height: int
    """Height of the map (H)."""
    width: int
    """Width of the map (W)."""

    @classmethod
    def of(cls, x_BCHW: Tensor, config: WindowConfig | None) -> Self | None:
        """Return the windows into which `config` cuts a map; None if the map stays whole."""
        if config is None:  # before the sides are read: symbolic tracing has none
            return None
        height, width = int(x_BCHW.shape[2]), int(x_BCHW.shape[3])
        if max(height, width) <= config.window_size:
            return None
        return cls(config=config, height=height, width=width)

    @cached_property
    def padded_height(self) -> int:
        """H rounded up to whole windows."""
        return -(-self.height // self.config.window_size) * self.config.window_size

    @cached_property
    def padded_width(self) -> int:
        """W rounded up to whole windows."""
        return -(-self.width // self.config.window_size) * self.config.window_size

    @cached_property
    def count(self) -> int:
        """Number of windows of one image (N)."""
        return self.padded_height * self.padded_width // self.config.window_size**2

    @property
    def is_padded(self) -> bool:
        """Whether the windows contain padding, because `window_size` does not divide H or W."""
        return (self.padded_height, self.padded_width) != (self.height, self.width)

    def cut(self, x_BCHW: Tensor) -> Tensor:
        """Return a map, B x C x H x W, as a strip, B x C x N*P x P, padded with zeros at the right and bottom."""
        if self.is_padded:
            padding = (0, self.padded_width - self.width, 0, self.padded_height - self.height)
            x_BCHW = F.pad(x_BCHW, padding)
        return self._by_chunks(self._cut, x_BCHW)

    def join(self, strip: Tensor) -> Tensor:
        """Return a strip, B x C x N*P x P, as B x C x H x W without the padding: the inverse of `cut`."""
        x_BCHW = self._by_chunks(self._join, strip)
        return x_BCHW[:, :, : self.height, : self.width] if self.is_padded else x_BCHW

    def split(self, tokens: Tensor) -> Tensor:
        """Return the tokens of a strip, B x N*L x D, by window, B*N x L x D: a view."""
        return tokens.reshape(-1, self.config.window_size**2, _channels(tokens, 2))

    def merge(self, tokens: Tensor) -> Tensor:
        """Return the tokens of all windows, B*N x L x D, by image, B x N*L x D: the inverse of `split`."""
        return tokens.reshape(-1, self.count * self.config.window_size**2, _channels(tokens, 2))

    def each(self, module: nn.Module, strip: Tensor) -> Tensor:
        """Apply a module to each window of a strip.

        Args:
            module: maps B*N x C x P x P, a view in channels-last format, to the same height and width.
            strip: B x C x N*P x P; see `cut`.

        Returns:
            The results as a strip.
        """
        size = self.config.window_size
        channels = _channels(strip, 1)
        windows = strip.permute(0, 2, 3, 1).reshape(-1, size, size, channels).permute(0, 3, 1, 2)
        result = module(windows)
        return result.permute(0, 2, 3, 1).reshape(-1, self.count * size, size, channels).permute(0, 3, 1, 2)

    def convolve(self, conv: nn.Conv2d, strip: Tensor) -> Tensor:
        """Apply a 3x3 convolution to each window of a strip; see `each`.

        Exported graphs keep the batch size, because some runtimes cannot enlarge it.
        """
        if not is_capturing():
            return self.each(conv, strip)
        # a row of zeros below every window pads it and the next window
        size, count, channels = self.config.window_size, self.count, _channels(strip, 1)
        apart = F.pad(strip.reshape(-1, channels, count, size * size), (0, size))
        result = conv(apart.reshape(-1, channels, count * (size + 1), size))
        together = result.reshape(-1, channels, count, (size + 1) * size)[..., : size * size]
        return together.reshape(-1, channels, count * size, size)

    def without_padding(self, strip: Tensor) -> Tensor:
        """Return a strip with zeros in place of masked padding."""
        if not self.has_mask:
            return strip
        return strip * self._constant(self._inside.reshape(1, 1, -1, self.config.window_size), strip)

    def mask(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys of a strip, B x N*L x D, with one more channel if padded keys must be masked.

        The mask is a channel, not added to the scores, because ncnn cannot add a constant to a batch of windows.
        """
        if not self.has_mask:
            return q, k
        bias = self._constant(np.where(self._inside, 0.0, _NEVER).reshape(1, -1, 1), k)
        # a trace has a fixed batch, and Core ML's converter needs it as a plain number
        images = int(k.shape[0]) if torch.jit.is_tracing() else k.shape[0]  # type: ignore[no-untyped-call, attr-defined]
        bias = bias.repeat(images, 1, 1)
        return torch.cat([q, torch.ones_like(bias)], dim=2), torch.cat([k, bias], dim=2)

    @property
    def has_mask(self) -> bool:
        """Whether there are padded tokens that other tokens must not depend on."""
        return self.is_padded and self.config.padded_tokens == "masked"

    @cached_property
    def _inside(self) -> np.ndarray:
        """Mask of the tokens of a strip, N*P x P, that are not padding."""
        rows = np.arange(self.padded_height)[:, None] < self.height
        columns = np.arange(self.padded_width)[None, :] < self.width
        parts = np.split(rows & columns, self.padded_width // self.config.window_size, axis=1)
        return np.concatenate(parts, axis=0)

    def _constant(self, values: np.ndarray, like: Tensor) -> Tensor:
        return torch.tensor(values.astype(np.float32)).to(like)

    def _by_chunks(self, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply `change` to groups of channels one after another, which keeps the reshaped tensors small."""
        if self.config.channel_chunks == 1:
            return change(x)
        return torch.cat([change(part) for part in x.chunk(self.config.channel_chunks, dim=1)], dim=1)

    def _cut(self, x_BCHW: Tensor) -> Tensor:
        # columns of windows, stacked: four axes suffice
        return torch.cat(torch.split(x_BCHW, self.config.window_size, dim=3), dim=2)

    def _join(self, strip: Tensor) -> Tensor:
        return torch.cat(torch.split(strip, self.padded_height, dim=2), dim=3)


def _channels(x: Tensor, axis: int) -> int:
    """Return the size of an axis as a plain number, also in traces: Core ML's converter cannot always infer it."""
    return int(x.shape[axis])
