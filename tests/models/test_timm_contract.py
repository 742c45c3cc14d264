"""What timm, and the libraries that build on it, ask of a network: timm's own model tests, written for ours.

The fast tests take the tiny network; `sweep` takes every size, plain and distilled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import group_parameters, model_parameters
from timm.models._features import FeatureGetterNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import iformer.timm
from iformer import create_model, fold, list_models, save
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.errors import UserError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.factory import build
from tiny.networks import randomize, tiny_config, tiny_variant

SIDE = 64
STRIDES = [4, 8, 16, 32]


def tiny(**options: Any) -> Classifier:
    torch.manual_seed(0)
    model = build(tiny_config(**options))
    assert isinstance(model, Classifier)
    randomize(model)
    return model


def tiny_distilled() -> Classifier:
    return tiny(distillation=True)


def sized(name: str) -> Callable[[], Classifier]:
    def make() -> Classifier:
        """Return the network with normally distributed weights, which are drawn in a quarter of the time."""
        with (
            mock.patch.object(nn.init, "trunc_normal_", nn.init.normal_),
            mock.patch.object(nn.init, "kaiming_uniform_", lambda weight, **_: weight),  # replaced in any case
        ):
            model = create_model(name)
        assert isinstance(model, Classifier)
        return model

    return make


NETWORKS = [
    pytest.param(tiny, id="tiny"),
    pytest.param(tiny_distilled, id="tiny_distilled"),
    pytest.param(sized("iformer_t"), id="iformer_t", marks=pytest.mark.sweep),
    *(pytest.param(sized(name), id=name, marks=pytest.mark.full) for name in list_models() if name != "iformer_t"),
]

every_network = pytest.mark.parametrize("make", NETWORKS)


@every_network
def test_forward_backward_and_description(make: Callable[[], Classifier]) -> None:
    model = make()
    x = torch.randn(2, 3, SIDE, SIDE)
    model.train()(x).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    cfg, state_dict = model.pretrained_cfg, model.state_dict()
    assert model.default_cfg == cfg
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert len(classifiers) == (2 if model.config.distillation else 1)
    for name in [*classifiers, cfg["first_conv"]]:
        assert f"{name}.weight" in state_dict
    assert cfg["num_classes"] == model.num_classes
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features == model.head_hidden_size
        logits = model(x)
        assert torch.equal(model.forward_head(features), logits)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        assert not any(key.startswith("head.") for key in model.state_dict())
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)


@every_network
def test_intermediates_and_pruning(make: Callable[[], Classifier]) -> None:
    model = make().eval()
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, expected)
        assert torch.equal(maps[-1], expected)
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert [SIDE // m.shape[2] for m in maps] == model.feature_info.reduction() == STRIDES
        last_two = model.forward_intermediates(x, indices=2, intermediates_only=True, norm=True, stop_early=True)
        assert all(map(torch.equal, last_two, maps[2:]))
        early = model.forward_intermediates(x, indices=[1, 0], stop_early=True)
        assert torch.equal(early[0], maps[1])
        assert all(map(torch.equal, early[1], [maps[1], maps[0]]))
        getter = FeatureGetterNet(copy.deepcopy(model), out_indices=(0, 2))
        assert all(map(torch.equal, getter(x), [maps[0], maps[2]]))
        assert model.prune_intermediate_layers([0, -3]) == [0, 1]
        assert len(model.stages) == 2
        assert torch.equal(model(x), maps[1])
        assert model.num_features == maps[1].shape[1]
        model.reset_classifier(3)
        assert model(x).shape == (1, 3)


@every_network
def test_layers_of_parameters(make: Callable[[], Classifier]) -> None:
    """Every parameter has a layer; deeper blocks have later layers; the head comes last."""
    model = make()
    names = {name for name, _ in model.named_parameters()}
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(layers) == names
        assert {layers[name] for name in names if name.startswith("stem.")} == {0}
        in_head = {layers[name] for name in names if name.startswith("head.")}
        assert in_head == {max(layers.values())}
        for stage, blocks in enumerate(model.config.stages):
            in_stage = {layers[name] for name in names if name.startswith(f"stages.{stage}.")}
            assert len(in_stage) == (1 if coarse else blocks.depth)
            assert max(layers[name] for name in names if name.startswith(("stem.", f"stages.{stage - 1}."))) < min(
                in_stage
            )
    scales = {group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5)}
    assert len(scales) == sum(stage.depth for stage in model.config.stages) + 2
    assert model.no_weight_decay() == set()
    assert len(list(model_parameters(model, exclude_head=True))) < len(names)


@every_network
def test_tracing(make: Callable[[], Classifier]) -> None:
    """Symbolic tracing, feature extraction by node name and `torch.jit.trace` compute the same."""
    model = make().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # of H: with 1e-6 an error in a branch would stay unseen
            nn.init.constant_(parameter, 0.3)
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = model(x)
        maps = model.forward_intermediates(x, intermediates_only=True)
    symbolic = torch.fx.symbolic_trace(model)
    extractor = create_feature_extractor(model, {f"stages.{i}": str(i) for i in range(4)})
    with torch.inference_mode():
        torch.testing.assert_close(symbolic(x), expected)
        assert all(map(torch.equal, extractor(x).values(), maps))
        other = torch.randn(2, 3, SIDE + 32, SIDE)
        torch.testing.assert_close(symbolic(other), model(other))
    folded = fold(model)
    for network in (model, folded):
        traced = torch.jit.trace(network, x, check_trace=False)
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # optimizing takes longer than running
            torch.testing.assert_close(traced(x), network(x))
    with pytest.raises(UserError, match="expected B x 3 x H x W"):
        symbolic(torch.zeros(1, 1, SIDE, SIDE))


@every_network
def test_gradient_checkpointing_by_timms_name(make: Callable[[], Classifier]) -> None:
    model = make().train()
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.set_grad_checkpointing(enable=False)
    assert not any(stage.grad_checkpointing for stage in model.stages)


@pytest.mark.parametrize(
    ("indices", "expected"),
    [((0, 1, 2, 3), [0, 1, 2, 3]), ((0, 1), [0, 1]), ((0,), [0]), ((-2,), [2]), (2, [2, 3]), (1, [3])],
)
def test_feature_maps_build_only_the_stages_they_need(indices: Any, expected: list[int]) -> None:
    full = tiny(num_classes=0).eval()
    model = build(tiny_config(num_classes=0), features_only=True, out_indices=indices).train()
    last = max(expected)
    assert len(model.stages) == last + 1
    info = model.feature_info
    assert info.out_indices == tuple(expected)
    assert info.channels() == [(8, 16, 24, 32)[i] for i in expected]
    assert info.reduction() == [STRIDES[i] for i in expected]
    assert info.module_name() == [f"stages.{i}" for i in expected]
    assert [entry["index"] for entry in info.get_dicts()] == expected
    x = torch.randn(2, 3, SIDE, SIDE)
    sum(m.mean() for m in model(x)).backward()  # DistributedDataParallel stops at a parameter without a gradient
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().load_state_dict({k: v for k, v in full.state_dict().items() if k in model.state_dict()})
    with torch.inference_mode():
        for actual, index in zip(model(x), expected, strict=True):
            assert torch.equal(actual, full.feature_maps(x)[index])
        folded = fold(model)
        for actual, whole in zip(folded(x), model(x), strict=True):
            torch.testing.assert_close(actual, whole, atol=1e-4, rtol=1e-4)


def test_weights_of_unused_stages_are_left_out(tmp_path) -> None:
    model = tiny()
    save(model, tmp_path / "tiny.safetensors")
    part = iformer.load(tmp_path / "tiny.safetensors", features_only=True, out_indices=(0, 1))
    assert type(part) is Backbone
    x = torch.randn(1, 3, SIDE, SIDE)
    assert all(map(torch.equal, part(x), model.eval().feature_maps(x)[:2]))
    with pytest.raises(UserError, match="2 of the 4 stages of tiny and cannot be saved"):
        save(part, tmp_path / "part.safetensors")
    assert not (tmp_path / "part.safetensors").exists()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda model: model.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=5),
            "indices is 5; expected",
        ),
        (lambda model: model.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=[4]), r"indices is \(4,\)"),
        (lambda model: model.forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NLC"), "format 'NCHW'"),
        (lambda model: model.reset_classifier(2, ""), "global_pool '' is for num_classes=0; got 2"),
        (lambda model: model.reset_classifier(0, "max"), "global_pool is 'max'; expected 'avg'"),
        (
            lambda model: build(model.config, features_only=True, out_indices=0),
            "out_indices is 0; expected 1 to 4",
        ),
    ],
)
def test_mistakes_are_named(use: Callable[[Classifier], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        use(tiny())


def test_timm_takes_input_settings_from_the_metadata() -> None:
    model = tiny()
    model.metadata = Metadata(
        class_names=("a", "b", "c", "d", "e"),
        preprocessing=Preprocessing(size=(96, 128), crop_pct=0.9, interpolation="bilinear", mean=(0.5, 0.4, 0.3)),
    )
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 96, 128)
    assert (config["crop_pct"], config["interpolation"], config["mean"]) == (0.9, "bilinear", (0.5, 0.4, 0.3))
    assert create_transform(**config) is not None
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c", "d", "e"]
    assert model.pretrained_cfg["pool_size"] == (3, 4)
    patches = build(tiny_config(stem="patch", downsample="patch"))
    patches.metadata = Metadata(preprocessing=Preprocessing(size=(97, 129)))
    assert patches.pretrained_cfg["pool_size"] == tuple(
        patches.forward_features(torch.zeros(1, 3, 97, 129)).shape[2:]
    )


def test_timm_builds_our_networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(iformer.config.variants.VARIANTS, "iformer_m", tiny_variant())
    name = iformer.timm.PREFIX + "iformer_m"
    assert set(timm.list_models("package_*")) == {iformer.timm.PREFIX + each for each in list_models()}
    assert f"{name}.in1k" in timm.list_models("package_*", pretrained=True)
    model = timm.create_model(name, num_classes=5, in_chans=1, drop_path_rate=0.1, attention="chunk_hybrid")
    assert isinstance(model, Classifier)
    assert model.config.stages[2].windows is not None
    assert (model.num_classes, model.config.in_chans, model.config.drop_path_rate) == (5, 1, 0.1)
    headless = timm.create_model(name, num_classes=0, global_pool="")
    assert headless(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 2, 2)
    features = timm.create_model(f"{name}.in1k", features_only=True, out_indices=2)
    assert [m.shape[1] for m in features(torch.zeros(1, 3, 64, 64))] == features.feature_info.channels()
    with pytest.raises(UserError, match="output_stride is 16"):
        timm.create_model(name, features_only=True, output_stride=16)
    assert create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.7).param_groups


def test_filters_of_list_models() -> None:
    assert list_models("*_distilled") == [name for name in list_models() if name.endswith("_distilled")]
    assert list_models(["iformer_t", "iformer_h*"], exclude_filters="*_distilled") == ["iformer_t", "iformer_h"]
    assert "iformer_t_distilled" not in list_models(pretrained=True)
    assert "iformer_l2_distilled" in list_models("*l2*", pretrained=True)
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", ["iformer_t.in1k", "timm/iformer_t.in1k"])
def test_timms_names_of_released_networks(name: str) -> None:
    with torch.device("meta"):
        assert create_model(name).config.name == "iformer_t"
