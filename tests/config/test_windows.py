"""Configs of the attention designs: presets, options and errors."""

from __future__ import annotations

import json

import pytest

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig, WindowConfig
from iformer.config.variants import VARIANTS, network_config
from iformer.config.windows import design_of, with_design
from iformer.errors import ConfigError


def windows(network: NetworkConfig) -> dict[int, WindowConfig]:
    """Stage number to its windows."""
    return {number: stage.windows for number, stage in enumerate(network.stages, 1) if stage.windows}


@pytest.mark.parametrize(("name", "global_blocks"), [("iformer_m", 0), ("iformer_l", 1), ("iformer_l2", 1)])
def test_the_released_downstream_networks(name: str, global_blocks: int) -> None:
    """Windows of 16 in stage 3 only, in 16 groups of channels; the distilled form alike."""
    expected = {3: WindowConfig(window_size=16, channel_chunks=16, global_blocks=global_blocks)}
    for form in (name, f"{name}_distilled"):
        assert windows(with_design(network_config(form), "chunk_hybrid", preset="released")) == expected
        assert windows(with_design(network_config(form), "chunk_hybrid")) == expected


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_papers_text(name: str) -> None:
    """Each attention stage, its last block global."""
    hybrid = with_design(network_config(name), "hybrid", preset="paper")
    assert windows(hybrid) == {3: WindowConfig(), 4: WindowConfig()}
    chunked = with_design(network_config(name), "chunk_hybrid", preset="paper")
    assert windows(chunked) == {3: WindowConfig(channel_chunks=16), 4: WindowConfig(channel_chunks=16)}
    assert [design_of(network) for network in (network_config(name), hybrid, chunked)] == [
        "shma",
        "hybrid",
        "chunk_hybrid",
    ]


def test_options_take_the_presets_place() -> None:
    network = with_design(
        network_config("iformer_m"),
        "chunk_hybrid",
        windowed_stages=(3, 4),
        window_size=8,
        channel_chunks=4,
        global_blocks=2,
        padded_tokens="masked",
    )
    expected = WindowConfig(window_size=8, channel_chunks=4, global_blocks=2, padded_tokens="masked")
    assert windows(network) == {3: expected, 4: expected}
    assert windows(with_design(network, "hybrid", windowed_stages=(4,))) == {4: WindowConfig(global_blocks=0)}
    assert with_design(network, "shma") == network_config("iformer_m")


def test_round_trip_through_json() -> None:
    network = with_design(network_config("iformer_l"), "chunk_hybrid")
    assert NetworkConfig.from_plain(json.loads(json.dumps(network.to_plain()))) == network


@pytest.mark.parametrize(
    ("design", "options", "message"),
    [
        ("window", {}, "attention is 'window'; expected one of 'shma', 'hybrid', 'chunk_hybrid'"),
        ("hybrid", {"preset": "best"}, "windows are 'best'; expected one of 'released', 'paper'"),
        ("hybrid", {"preset": "released"}, "use 'paper' for iformer_t"),
        ("shma", {"preset": "paper"}, "attention 'shma' has no windows; leave out preset"),
        ("shma", {"window_size": 8}, "attention 'shma' has no windows; leave out window_size"),
        ("hybrid", {"channel_chunks": 2}, "attention 'hybrid' has no channel_chunks"),
        ("hybrid", {"windowed_stages": (5,)}, "windowed_stages has 5; expected stages from 1 to 4"),
        ("hybrid", {"windowed_stages": (2,)}, "windows is .* null in a stage without attention blocks"),
        ("hybrid", {"window_size": 1}, "WindowConfig.window_size is 1; expected a whole number from 2 to 1024"),
        ("hybrid", {"global_blocks": -1}, "WindowConfig.global_blocks is -1"),
        ("hybrid", {"padded_tokens": "cut"}, "WindowConfig.padded_tokens is 'cut'"),
        ("chunk_hybrid", {"channel_chunks": 0}, "WindowConfig.channel_chunks is 0"),
        ("chunk_hybrid", {"channel_chunks": 129}, r"at most as many channel_chunks as channels \(128\)"),
    ],
)
def test_what_does_not_exist_is_named(design: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_design(network_config("iformer_t"), design, **options)  # type: ignore[arg-type]


def test_an_operator_without_windows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the attention operator 'sha' has no windows; these have: shma"):
        StageConfig(
            channels=8,
            pattern=(("attention", 1),),
            attention=AttentionConfig(operator="sha"),
            windows=WindowConfig(),
        )
