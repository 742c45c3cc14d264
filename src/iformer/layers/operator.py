"""What an attention operator is, and how a config's name becomes one."""

from __future__ import annotations

import importlib

from torch import nn

from iformer.config.network import AttentionConfig
from iformer.config.operators import ATTENTION_OPERATORS
from iformer.layers.residual import ResidualAdd


class AttentionOperator(nn.Module):
    """Mixes the places of a feature map, residual included: B x C x H x W to the same shape.

    A subclass builds itself from a stage's `AttentionConfig`, ends its `forward` in `residual(x, branch)`, and
    says in `fold` what it is for inference.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, residual: ResidualAdd) -> None:
        """`channels` of the map; `residual` is the sum that closes the operator."""
        super().__init__()

    def fold(self) -> nn.Module:
        """A new module that computes the same in eval mode, norms and layer scale inside its convolutions."""
        raise NotImplementedError


def operator_class(name: str) -> type[AttentionOperator]:
    """The class of an operator of `ATTENTION_OPERATORS`.

    Raises:
        TypeError: what its row names is no `AttentionOperator`.
    """
    module, _, class_name = ATTENTION_OPERATORS[name].location.partition(":")
    found = getattr(importlib.import_module(module), class_name)
    if not (isinstance(found, type) and issubclass(found, AttentionOperator)):
        raise TypeError(f"{ATTENTION_OPERATORS[name].location} is no AttentionOperator")
    return found
