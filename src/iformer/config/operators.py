"""The attention operators, one row each (`docs/extend/attention-operator.md` says how to add one). No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One attention operator."""

    location: str
    """Its class, as `module:Class`; imported when a network with it is built."""
    options: tuple[str, ...] = ()
    """The fields of `AttentionConfig` that it alone, or with a few others, reads."""
    windows: bool = False
    """Whether its `forward` takes the windows of a strip (`iformer.layers.windows`)."""


ATTENTION_OPERATORS: dict[str, Operator] = {
    "shma": Operator(
        location="iformer.layers.attention:SHMA",
        options=("modulation", "activation", "norm_placement"),
        windows=True,
    ),
    "sha": Operator(location="iformer.layers.sha:SHA"),
    "mha": Operator(location="iformer.layers.mha:MHA", options=("head_dim",)),
    "shvit": Operator(location="iformer.layers.shvit:SHViTAttention", options=("channel_share", "concat")),
}

OPERATOR_OPTIONS = frozenset(option for row in ATTENTION_OPERATORS.values() for option in row.options)
"""Fields of `AttentionConfig` that not every operator reads."""
