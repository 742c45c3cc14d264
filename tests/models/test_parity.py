"""Outputs and gradients equal those of timm's iFormer with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch

from iformer.config.variants import network_config
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.models.weights.dialects import from_timm
from tiny.networks import randomize

NAMES = [
    "iformer_t",
    "iformer_s",
    "iformer_m",
    "iformer_l",
    "iformer_l2",
    "iformer_m_distilled",
    "iformer_l_distilled",
    "iformer_l2_distilled",
]


SIZES = ((224, 224), (192, 256), (225, 223))


def pair(name: str):
    """timm's network with random weights and statistics, and ours with the same."""
    oracle = timm.create_model(name)
    randomize(oracle)
    config = network_config(name)
    model = build(config)
    model.load_state_dict(from_timm(oracle.state_dict(), config))
    return oracle, model


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, SIZES) for name in NAMES),
        pytest.param("iformer_h", SIZES, marks=pytest.mark.full),  # 15 GMACs at 224 pixels
    ],
)
def test_outputs_agree_before_and_after_folding(name: str, sizes: Sequence[tuple[int, int]]) -> None:
    oracle, model = pair(name)
    oracle.eval()
    model.eval()
    folded = fold(model)
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(1, 3, *size)
            expected = oracle(x)
            nhwc = x.contiguous(memory_format=torch.channels_last)
            for output in (model(x), folded(x), folded(nhwc)):
                torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["iformer_t", "iformer_m"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree(name: str, training: bool) -> None:
    oracle, model = pair(name)
    x = torch.randn(2, 3, 96, 96)
    if training:
        # the head's batch norm over two images amplifies rounding: what is compared is the function
        oracle, model, x = oracle.double(), model.double(), x.double()
    for network in (oracle, model):
        network.train(training)
        network(x).log_softmax(dim=1)[:, 3].sum().backward()
    gradients = {key: parameter.grad for key, parameter in oracle.named_parameters()}
    expected = from_timm(oracle.state_dict() | gradients, network_config(name))
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[key], atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )
