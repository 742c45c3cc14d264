"""Folding returns a new network that computes the same function; every foldable layer is folded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from iformer.errors import UserError
from iformer.layers.attention import FoldedSHMA
from iformer.layers.conv_norm import ConvNorm
from iformer.layers.operator import AttentionOperator
from iformer.layers.residual import ResidualAdd
from iformer.models.factory import build
from iformer.models.folding import fold
from tiny.networks import randomize, tiny_config


@pytest.fixture
def every_option(make_ablated_config):
    return make_ablated_config(distillation=True, layer_scale_init=0.1, drop_path_rate=0.2)


@pytest.mark.parametrize("features_only", [False, True])
def test_same_function(every_option, features_only: bool) -> None:
    model = build(every_option, features_only=features_only)
    randomize(model)
    model.eval()
    x = torch.randn(2, 3, 70, 96)
    expected, given = model(x), fold(model)(x)
    if not features_only:
        expected, given = [expected], [given]
    for a, b in zip(expected, given, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_exact_in_double_precision(every_option) -> None:
    """The identity is exact in real arithmetic: in double precision little is left of the difference."""
    model = build(every_option)
    randomize(model)
    model = model.double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    torch.testing.assert_close(model(x), fold(model)(x), atol=1e-12, rtol=1e-12)


def test_nothing_that_folds_is_left(every_option) -> None:
    folded = fold(build(every_option))
    kinds = [type(module) for module in folded.modules()]
    assert not any(issubclass(kind, nn.BatchNorm1d | nn.BatchNorm2d | ConvNorm) for kind in kinds)
    assert not any(issubclass(kind, AttentionOperator) for kind in kinds)
    assert all(module.gamma is None for module in folded.modules() if isinstance(module, ResidualAdd))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(parameter.is_meta for parameter in folded.parameters())


def test_every_item_of_a_released_network_is_folded() -> None:
    folded = fold(build(tiny_config(distillation=True, layer_scale_init=0.1)))
    kinds = [type(module) for module in folded.modules()]
    assert FoldedSHMA in kinds
    assert not any(issubclass(kind, nn.LayerNorm) for kind in kinds)
    assert isinstance(folded.head, nn.Linear)
    assert all(isinstance(block.position.conv, nn.Conv2d) for block in folded.stages[3].blocks)


def test_the_original_is_left_alone(every_option) -> None:
    model = build(every_option)
    randomize(model)
    before = copy.deepcopy(model.state_dict())
    model.train()
    folded = fold(model)
    for parameter in folded.parameters():
        parameter.zero_()
    assert model.training
    assert not folded.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_features_and_head_calls_of_the_folded_form() -> None:
    model = build(tiny_config())
    randomize(model)
    folded, x = fold(model.eval()), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(folded.forward_features(x), model.forward_features(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded.forward_head(folded.forward_features(x)), model(x), atol=1e-5, rtol=1e-5)
    assert folded.feature_info.get_dicts() == model.feature_info.get_dicts()


def test_gradients_of_both_forms_agree_at_batch_one() -> None:
    """Saliency maps are made on the folded network too; and one layout of gradients breaks torch's batch norm."""
    model = build(tiny_config())
    randomize(model)
    model.eval()
    grads = []
    for network in (model, fold(model)):
        x = torch.ones(1, 3, 64, 64, requires_grad=True)
        network(x)[0, 0].backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_folded_is_named() -> None:
    folded = fold(build(tiny_config()))
    assert folded.is_folded
    with pytest.raises(UserError, match="folded already"):
        fold(folded)
    with pytest.raises(UserError, match="got Linear"):
        fold(nn.Linear(2, 2))
