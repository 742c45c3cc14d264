"""The two 1x1 convolutions of a block on large maps, slice by slice, so that the expanded map is never in memory.

glibc's malloc maps every tensor above 32 MiB anew, and the page faults take up to a third of a block's time
(`docs/benchmarks/large-images.md`). Slices are small enough for memory that is used again.

Shape letters: B batch, C channels, H and W the map's sides, P = B * H * W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iformer.layers.folded_conv import FoldedConv, is_pointwise

LARGE_BYTES = 32 * 2**20
"""Size of an expanded map above which it is computed in slices."""
SLICE_BYTES = 8 * 2**20
"""Largest size of a slice of the expanded map."""


def is_large(expand: FoldedConv, project: FoldedConv, x: Tensor) -> bool:
    """Return whether to use `add_in_slices`: 1x1 convolutions on an x86 CPU with a large expanded map.

    False in captured graphs, and if a hook needs the output of one of the convolutions.
    """
    return (
        is_pointwise(expand)
        and is_pointwise(project)
        and expand.can_fuse(x)
        and project.can_fuse(x)
        and _expanded_bytes(expand, x) > LARGE_BYTES
    )


def add_in_slices(shortcut: Tensor, x: Tensor, expand: FoldedConv, project: FoldedConv) -> Tensor:
    """Return `shortcut + project(gelu(expand(x)))` of 1x1 convolutions; x and shortcut are B x C x H x W."""
    total = shortcut.clone(memory_format=torch.channels_last)
    count = -(-_expanded_bytes(expand, x) // SLICE_BYTES)
    slices = (_row_of_pixels(whole).chunk(count, dim=3) for whole in (total, x))
    for part_of_total, part in zip(*slices, strict=True):
        project.add_in_place(part_of_total, expand.gelu(part))
    return total


def _expanded_bytes(expand: FoldedConv, x: Tensor) -> int:
    return x.numel() // x.shape[1] * expand.out_channels * x.element_size()


def _row_of_pixels(x: Tensor) -> Tensor:
    """Return B x C x H x W as 1 x C x 1 x P, channels-last: slices along P are contiguous."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1).reshape(1, 1, -1, x.shape[1]).permute(0, 3, 1, 2)
