"""What several rooms of tests share: a tiny network and statistics that are not the initial ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig


def tiny_config(**options: object) -> NetworkConfig:
    """A network with every kind of block that trains in milliseconds."""
    attention = AttentionConfig(reduction=2, ffn_expansion_ratio=2)
    stages = (
        StageConfig(channels=8, pattern=(("conv", 1),), conv_expansion_ratio=2),
        StageConfig(channels=16, pattern=(("conv", 1),), conv_expansion_ratio=2),
        StageConfig(
            channels=24,
            pattern=(("conv", 1), ("attention", 2), ("conv", 1)),
            conv_expansion_ratio=2,
            attention=attention,
        ),
        StageConfig(channels=32, pattern=(("attention", 1),), attention=attention),
    )
    fields: dict[str, object] = {"name": "tiny", "stages": stages, "num_classes": 5}
    return NetworkConfig(**(fields | options))  # type: ignore[arg-type]


@pytest.fixture
def make_tiny_config() -> Callable[..., NetworkConfig]:
    """`tiny_config` for tests that change fields."""
    return tiny_config


def randomize_statistics(model: nn.Module) -> None:
    """Weights and statistics as far from their initial values as those of a trained network.

    At initialisation every residual branch is so small that most mistakes in it would stay unseen.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.6 * module.weight[0].numel() ** -0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.1, 0.5)


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    """`randomize_statistics`, with the seed set."""

    def seeded(model: nn.Module) -> None:
        torch.manual_seed(0)
        randomize_statistics(model)

    return seeded
