"""Configs of the networks in the paper's tables: one for each row that is an iFormer, by the row's name.

`data/notes.yaml` explains how ambiguous rows are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iformer.config.network import AttentionConfig, NetworkConfig
from iformer.config.variants import network_config
from iformer.config.windows import with_design
from iformer_paper.ladder import (
    LADDER,
    ladder_network,
    with_attention,
    with_attention_options,
    with_depths,
)

Networks = dict[str, NetworkConfig]

_CONV = ladder_network("kernel size")
_SHA = ladder_network("SHA")
_SHMA = ladder_network("SHMA")
_M = network_config("iformer_m")


def _named(name: str, network: NetworkConfig) -> NetworkConfig:
    return network.with_options(name=name)


def _stages(network: NetworkConfig, **options: Any) -> NetworkConfig:
    return network.with_options(stages=tuple(replace(stage, **options) for stage in network.stages))


def _with_stage4(network: NetworkConfig, *, blocks: int) -> NetworkConfig:
    *before, last = network.stages
    return network.with_options(stages=(*before, replace(last, pattern=(("attention", blocks),))))


def _shares() -> Networks:
    """Return Table 7's networks: each attention block in stage 3 replaces two conv blocks."""
    rows: Networks = {"Baseline": _CONV}
    for percent, blocks in ((22, 2), (50, 4), (78, 7), (100, 9)):
        sha = with_attention(_CONV, blocks)
        row = f"Replacing {percent}% Conv Blocks in Stage 3 as"
        rows[f"{row} SHA"] = _named(f"sha_{percent}", sha)
        rows[f"{row} SHMA"] = _named(f"shma_{percent}", with_attention_options(sha, operator="shma"))
    # the printed count matches half of stage 3, not all of it as the label says, so the label looks wrong
    rows["Replacing 100% Conv Blocks in Stage 3 as SHMA and 100% in Stage 4"] = _SHMA
    return rows


def _design(design: str) -> NetworkConfig:
    return with_design(_M, design, preset=None if design == "shma" else "paper").with_options(name=f"m_{design}")


DESIGNS = {
    "SHMA": _design("shma"),
    "Hybrid SHMA": _design("hybrid"),
    "Chunk Hybrid SHMA": _design("chunk_hybrid"),
    "CC Hybrid SHMA": _design("chunk_hybrid"),
}
"""Tables 16 and 17: iFormer-M with each attention design, with windows as in the paper's text. "CC Hybrid SHMA" is
Table 17's name for "Chunk Hybrid SHMA"."""

_T_TO_L = {f"iFormer-{size}": network_config(f"iformer_{size.lower()}") for size in "TSML"}
_SHVIT = with_attention_options(_SHA, operator="shvit")
_QUARTER = with_attention_options(_SHVIT, channel_share=0.25)

ABLATIONS: dict[int, Networks] = {
    1: {"MHA Baseline": _named("mha", with_attention_options(_SHA, operator="mha")), "SHA Baseline": _SHA},
    2: {
        f"{size}x{size}": _named(f"kernel_{size}", _stages(ladder_network("stage ratio"), conv_kernel_size=size))
        for size in (3, 7)
    },
    3: _T_TO_L,
    4: {"iFormer-M": network_config("iformer_m_distilled"), "iFormer-L": network_config("iformer_l_distilled")},
    5: {"iFormer-M": network_config("iformer_m"), "iFormer-L": network_config("iformer_l")},
    6: {
        "SiLU + Post-BN": _named("silu", with_attention_options(_M, activation="silu")),
        "SiLU + Pre-LN": _named(
            "silu_pre_ln", with_attention_options(_M, activation="silu", norm_placement="pre_ln")
        ),
        "Sigmoid + Post-BN": _M,
    },
    7: _shares(),
    8: {"iFormer-H": network_config("iformer_h")},
    10: {
        "Baseline": _SHMA,
        "Number of Blocks": _named("fewer_blocks", _with_stage4(_SHMA, blocks=1)),
        "FFN Width": _named("ffn_width", with_attention_options(_SHMA, ffn_expansion_ratio=2.0)),
        "Attn. Head and FFN Width": ladder_network("reduced width"),
    },
    11: {"with": _named("expanded_depthwise", _stages(_M, expanded_kernel_size=7)), "without": _M},
    12: {"iFormer-L2": network_config("iformer_l2_distilled")},
    13: {"iFormer-L": network_config("iformer_l"), "iFormer-L2": network_config("iformer_l2")},
    14: {
        "SHA Baseline without Modulation": _SHA,
        "split": _named("shvit_split", _SHVIT),
        "attention on 1/4 channels": _named("shvit_quarter", _QUARTER),
        "concat": _named("shvit_concat", with_attention_options(_QUARTER, concat=True)),
    },
    15: _T_TO_L,
    18: _T_TO_L,
}
"""Networks by table number and row name. Table 9 lists settings, not networks. Tables 16 and 17 are in
`DESIGNS`."""

_T = network_config("iformer_t")

TRAINED: Networks = {
    "SHMA (iFormer-T)": _T,
    "SHMA as in equation 3": with_attention_options(_T, modulation="output"),
    "SiLU + Post-BN": with_attention_options(_T, activation="silu"),
    "SiLU + Pre-LN": with_attention_options(_T, activation="silu", norm_placement="pre_ln"),
    "without position encoding": with_attention_options(_T, position_encoding=False),
    "SHA": with_attention_options(_T, operator="sha"),
    # four heads in both stages
    "MHA": with_attention_options(_T, operator="mha", head_dim=16),
    "SHViT's attention": with_attention_options(_T, operator="shvit", channel_share=0.25, concat=True),
    # two conv blocks for each attention block of stage 3, as in Table 7
    "conv blocks only": with_depths(_T, (2, 2, 13, 2)),
}
"""iFormer-T and ablations of it for training on a small data set. The name of an ablation says what differs."""


def every_network() -> dict[str, NetworkConfig]:
    """Return the distinct networks of the ladder and the tables, by names such as "table 1, MHA Baseline"."""
    found: dict[NetworkConfig, str] = {}
    for step in LADDER:
        found.setdefault(_essence(step.network), f"figure 2, {step.label}")
    for table, rows in ABLATIONS.items():
        for row, network in rows.items():
            found.setdefault(_essence(network), f"table {table}, {row}")
    return {name: network.with_options(name=name) for network, name in found.items()}


def _essence(network: NetworkConfig) -> NetworkConfig:
    """Return the config without the name and without options of blocks that the network does not have."""
    stages = tuple(
        stage if "attention" in stage.blocks else replace(stage, attention=AttentionConfig())
        for stage in network.stages
    )
    return network.with_options(name="", stages=stages)
