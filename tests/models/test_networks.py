"""Contract tests of every network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.variants import VARIANTS, list_models, network_config
from iformer.errors import UserError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.complexity import count_parameters
from iformer.models.factory import build, create_model
from iformer.models.folding import fold
from tiny.dense import light_detector, light_segmenter
from tiny.networks import randomize, tiny_config

GOLDEN_KEYS = Path(__file__).parent / "golden_state_dict.json"


def on_meta(name: str) -> Classifier:
    with torch.device("meta"):
        model = build(network_config(name))
    assert isinstance(model, Classifier)
    return model


def test_state_dict_keys_are_pinned() -> None:
    """A changed key breaks every checkpoint in circulation, so the keys and shapes are a file."""
    golden = json.loads(GOLDEN_KEYS.read_text())
    assert set(golden) == set(list_models())
    for name, keys in golden.items():
        assert {key: list(value.shape) for key, value in on_meta(name).state_dict().items()} == keys, name


@pytest.mark.parametrize("name", list(VARIANTS))
def test_feature_maps_match_their_description(name: str) -> None:
    with torch.device("meta"):
        model = build(network_config(name), features_only=True).eval()
        maps = model(torch.empty(2, 3, 97, 130))
    info = model.feature_info
    assert [m.shape[1] for m in maps] == info.channels() == list(network_config(name).channels)
    for feature_map, stride in zip(maps, info.reduction(), strict=True):
        assert tuple(feature_map.shape[2:]) == (-(-97 // stride), -(-130 // stride))
    for module_name in info.module_name():
        model.get_submodule(module_name)


def test_out_indices_select_feature_maps() -> None:
    torch.manual_seed(0)
    full = build(tiny_config(), features_only=True).eval()
    two_stages = build(tiny_config(), features_only=True, out_indices=(1, -1)).eval()
    two_stages.load_state_dict(full.state_dict())
    x = torch.randn(1, 3, 64, 64)
    full_maps, two_maps = full(x), two_stages(x)
    assert two_stages.feature_info.channels() == [16, 32]
    assert [info["index"] for info in two_stages.feature_info.get_dicts()] == [1, 3]
    assert torch.equal(two_maps[0], full_maps[1])
    assert torch.equal(two_maps[1], full_maps[3])
    with pytest.raises(UserError, match="out_indices is \\(0, 4\\)"):
        build(tiny_config(), features_only=True, out_indices=(0, 4))


@pytest.mark.parametrize("size", [(32, 32), (32, 97), (225, 223)])
def test_any_input_size(size: tuple[int, int]) -> None:
    model = build(tiny_config()).eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_unusable_input_is_named(shape: tuple[int, ...]) -> None:
    model = build(tiny_config())
    with pytest.raises(UserError, match="expected B x 3 x H x W with H and W of 32 or more"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("network", [lambda: build(tiny_config()), light_detector, light_segmenter])
def test_input_that_is_not_floating_point_is_named(network: Callable[[], nn.Module]) -> None:
    model = network().eval()
    with pytest.raises(UserError, match=r"input is of torch\.uint8; expected a tensor of floating-point numbers"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match="input is of type list; expected a tensor"):
        model([torch.zeros(3, 64, 64)])


def test_an_empty_batch_has_empty_answers() -> None:
    model = build(tiny_config()).eval()
    images = torch.zeros(0, 3, 64, 64)
    for network in (model, fold(model)):
        assert network(images).shape == (0, 5)
    assert light_segmenter().eval()(images).shape == (0, 3, 64, 64)
    boxes, scores = light_detector().eval()(images)
    assert len(boxes) == len(scores) == 0


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("layer_scale_init", [None, 1e-6])
def test_every_parameter_gets_a_gradient(make_ablated_config, distillation, layer_scale_init) -> None:
    model = build(make_ablated_config(distillation=distillation, layer_scale_init=layer_scale_init)).train()
    assert isinstance(model, Classifier)
    model.set_distilled_training()
    output = model(torch.randn(4, 3, 64, 64))
    outputs = output if distillation else (output,)
    sum(logits.square().mean() for logits in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith((".q.norm.bias", ".k.norm.bias", ".k.bias")):
            assert parameter.grad.abs().sum() > 0, name


def test_distilled_head_returns_two_outputs_for_distillation_and_their_mean_otherwise() -> None:
    model = build(tiny_config(distillation=True))
    assert isinstance(model, Classifier)
    x = torch.randn(4, 3, 64, 64)
    plain = model.train()(x)
    model.set_distilled_training()
    label_logits, teacher_logits = model(x)
    assert label_logits.shape == teacher_logits.shape == (4, 5)
    assert torch.equal(plain, (label_logits + teacher_logits) / 2)
    model.set_distilled_training(False)
    assert torch.equal(model(x), plain)
    model.set_distilled_training()
    model.eval()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    head = model.get_classifier()
    mean = (head.classifier(features) + head.distilled(features)) / 2
    assert torch.equal(model(x), mean)


def test_the_two_forms_of_modulation_differ() -> None:
    """Equation 3 as printed is another function than the released networks; both keep the same weights."""
    released = build(tiny_config()).eval()
    randomize(released)
    stages = tuple(
        StageConfig(
            channels=stage.channels,
            pattern=stage.pattern,
            conv_expansion_ratio=stage.conv_expansion_ratio,
            attention=AttentionConfig(reduction=2, ffn_expansion_ratio=2, modulation="output"),
        )
        for stage in tiny_config().stages
    )
    printed = build(tiny_config(stages=stages)).eval()
    printed.load_state_dict(released.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(released(x), printed(x))


def test_pretrained_is_true_or_false() -> None:
    with pytest.raises(UserError, match="pretrained is 'no'; expected True or False"):
        create_model("iformer_t", pretrained="no")  # type: ignore[arg-type]


def test_reset_classifier() -> None:
    model = build(tiny_config())
    assert isinstance(model, Classifier)
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert model.num_classes == model.config.num_classes == 7
    model.reset_classifier(3, distillation=True)
    model.set_distilled_training()
    assert len(model.train()(torch.randn(2, 3, 64, 64))) == 2
    model.reset_classifier(3)
    assert len(model.train()(torch.randn(2, 3, 64, 64))) == 2
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, model.num_features)


def test_drop_path_grows_linearly_over_depth() -> None:
    """A conv block, a CPE, an SHMA and an FFN count as one unit of depth each."""
    model = build(tiny_config(drop_path_rate=0.5))
    rates = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    # 1 + 1 + (1 + 3 + 3 + 1) + 3 units; the first has rate 0 and so no module
    assert rates == pytest.approx([0.5 * i / 12 for i in range(1, 13)])


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    """Gradients, and the running statistics, which a repeated forward pass would count twice."""
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = build(tiny_config(drop_path_rate=0.3)).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(torch.randn(4, 3, 64, 64)).square().sum().backward()
        results.append(
            ({n: p.grad for n, p in model.named_parameters()}, {n: b.clone() for n, b in model.named_buffers()})
        )
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.keys() == checkpointed.keys()
        for name in plain:
            assert torch.equal(plain[name], checkpointed[name]), name


@pytest.mark.parametrize("features_only", [False, True])
def test_backbone_weights_are_the_classifiers_without_the_head(features_only: bool) -> None:
    model = build(tiny_config(), features_only=features_only)
    assert isinstance(model, Classifier) != features_only
    assert isinstance(model, Backbone)
    keys = {key for key in model.state_dict() if not key.startswith("head.")}
    assert keys == set(build(tiny_config(), features_only=True).state_dict())


def test_any_stage_pattern_can_be_built() -> None:
    stages = tuple(
        StageConfig(channels=16, pattern=(("attention", 1), ("conv", 2), ("attention", 1))) for _ in range(4)
    )
    model = build(NetworkConfig(name="pattern", stages=stages, num_classes=2))
    kinds = [type(block).__name__ for block in model.stages[0].blocks]
    assert kinds == ["AttentionBlock", "ConvBlock", "ConvBlock", "AttentionBlock"]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 2)
    assert count_parameters(model) > 0
