"""Sizes of a network: parameters and multiply-accumulates."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, running statistics not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: tuple[int, int], *, in_chans: int = 3) -> int:
    """Multiply-accumulates of one image of `size` (height, width), counted on the meta device.

    Counts convolutions, linear layers and the attention's two products, not norms, activations or sums.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(torch.empty(1, in_chans, *size, device="meta"))
    return counter.get_total_flops() // 2
