"""ONNX exports of the networks of the paper's tables agree with the networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iformer.config.network import NetworkConfig, StageConfig
from iformer.deploy.export import export_artifact
from iformer.models.factory import build
from iformer.tasks.export import exportable
from iformer_paper.ablations import every_network
from tiny.networks import ablated_config, randomize, tiny_config
from tiny.packages import need_packages

need_packages("onnxruntime", "onnxscript")

NETWORKS = every_network()


def attending(stage: StageConfig, **options: Any) -> StageConfig:
    """The stage with other attention blocks."""
    return replace(stage, attention=replace(stage.attention, **options))


def small_networks() -> dict[str, NetworkConfig]:
    """Every option that a network of the paper has, two different stages of attention in each."""
    convolutional, third, fourth = tiny_config().stages[:2], *tiny_config().stages[2:]
    quarter = {"operator": "shvit", "channel_share": 0.25}
    pairs: dict[str, tuple[StageConfig, StageConfig, dict[str, Any]]] = {
        "SHMA, equation 3 and SHA": (
            attending(third, modulation="output"),
            attending(fourth, operator="sha"),
            {"distillation": True},
        ),
        "MHA and pre-LN": (
            attending(third, operator="mha", head_dim=4, position_encoding=False),
            attending(fourth, activation="silu", norm_placement="pre_ln"),
            {"stem_kernel_size": 3},
        ),
        "SHViT": (
            replace(attending(third, **quarter, concat=True), expanded_kernel_size=7),
            attending(fourth, operator="shvit"),
            {"layer_scale_init": 0.1},
        ),
    }
    small = {
        name: tiny_config().with_options(stages=(*convolutional, *stages), **options)
        for name, (*stages, options) in pairs.items()
    }
    return {**small, "ConvNeXt": ablated_config("ConvNeXt")}


SMALL = small_networks()


def options_of(networks: Iterable[NetworkConfig]) -> set[tuple[str, Any]]:
    """Names and values of what decides which operations are in a network's graph."""
    found: set[tuple[str, Any]] = set()
    for network in networks:
        names = ("stem", "stem_kernel_size", "downsample", "norm", "distillation")
        found |= {(name, getattr(network, name)) for name in names}
        found.add(("layer scale", network.layer_scale_init is not None))
        for stage in network.stages:
            found.add(("expanded", stage.expanded_kernel_size is not None))
            if "attention" in stage.blocks:
                attention = stage.attention
                names = ("operator", "modulation", "activation", "norm_placement", "position_encoding", "concat")
                found |= {(name, getattr(attention, name)) for name in names}
                found.add(("all channels", attention.channel_share == 1))
    return found


def check_export(config: NetworkConfig, folder: Path) -> None:
    """`export_artifact` keeps nothing that does not agree; what it measured is looked at all the same."""
    model: Any = build(config.with_options(num_classes=3))
    randomize(model)
    info = export_artifact(exportable(model.eval()), folder / "network.onnx", "onnx", size=(64, 64))
    assert info.status == "run here"
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-3
    assert info.parity["images"] >= 3


def test_the_small_networks_have_every_option_of_the_papers() -> None:
    assert options_of(NETWORKS.values()) <= options_of(SMALL.values())


@pytest.mark.parametrize("name", list(SMALL))
def test_the_artifact_of_a_small_network_is_the_network(name: str, tmp_path: Path) -> None:
    check_export(SMALL[name], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_artifact_is_the_network(name: str, tmp_path: Path) -> None:
    check_export(NETWORKS[name], tmp_path)
