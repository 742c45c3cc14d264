"""Interface of attention operators, and lookup of an operator's class by name."""

from __future__ import annotations

import importlib

from torch import nn

from iformer.config.network import ATTENTION_OPERATORS, AttentionConfig
from iformer.layers.residual import ResidualAdd


class AttentionOperator(nn.Module):
    """Base class: attention over a feature map with its residual, B x C x H x W to the same shape.

    A subclass is built from a stage's `AttentionConfig`, returns `residual(x, branch)` from `forward`, and
    implements `fold` for inference.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        """Build the operator for `channels` channels; `residual` adds the input to the attention's output."""
        super().__init__()

    def fold(self) -> nn.Module:
        """Return the attention for inference, with norms and layer scale inside the convolutions."""
        raise NotImplementedError


def operator_class(name: str) -> type[AttentionOperator]:
    """Return the class of an operator of `ATTENTION_OPERATORS`.

    Raises:
        KeyError: `ATTENTION_OPERATORS` has no operator of this name.
        TypeError: the operator's row names something that is not an `AttentionOperator`.
    """
    module, _, class_name = ATTENTION_OPERATORS[name].location.partition(":")
    found = getattr(importlib.import_module(module), class_name)
    if not (isinstance(found, type) and issubclass(found, AttentionOperator)):
        raise TypeError(f"{ATTENTION_OPERATORS[name].location} is not an AttentionOperator")
    return found
