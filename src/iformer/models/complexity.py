"""Number of parameters and multiply-accumulates of a network."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters. Running statistics of norms are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: tuple[int, int], *, in_chans: int = 3) -> int:
    """Return the number of multiply-accumulates for one image of `size` (height, width).

    Convolutions, linear layers and the two products of attention count; norms, activations and sums do not. The
    network runs on the meta device, which computes shapes only.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(torch.empty(1, in_chans, *size, device="meta"))
    return counter.get_total_flops() // 2
