"""`create_model`: options, checkpoints by path, and weights that fit only in part."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from iformer import create_model, load, save
from iformer.errors import ConfigError, UnknownNameError, UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.factory import build
from iformer.models.weights.dialects import to_authors
from tiny.networks import randomize, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`t4.safetensors` and `t4.pth`: the same iFormer-T with four classes; `d4.safetensors`: distilled."""
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = create_model("iformer_t", num_classes=4)
    save(model, path / "t4.safetensors", class_names=("a", "b", "c", "d"), metrics={"top1": 80.0})
    torch.save({"model": to_authors(model.state_dict(), model.config)}, path / "t4.pth")
    save(create_model("iformer_t_distilled", num_classes=4), path / "d4.safetensors")
    return path


def same_backbone(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(value, right[key]) for key, value in left.items() if not key.startswith("head."))


def test_options_reach_the_config() -> None:
    with torch.device("meta"):
        model = create_model(
            "iformer_t", num_classes=7, in_chans=1, distillation=True, drop_path_rate=0.2, modulation="output"
        )
    config = model.config
    assert (config.num_classes, config.in_chans, config.distillation) == (7, 1, True)
    assert (config.drop_path_rate, config.name) == (0.2, "iformer_t_distilled")
    assert {stage.attention.modulation for stage in config.stages} == {"output"}
    assert model.training
    with torch.device("meta"):
        other = create_model("iformer_m_distilled", distillation=False, layer_scale_init=1e-4, conv_kernel_size=5)
    assert (other.config.name, other.config.layer_scale_init) == ("iformer_m", 1e-4)
    assert {stage.conv_kernel_size for stage in other.config.stages} == {5}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_classes", -1),
        ("num_classes", 2.5),
        ("num_classes", True),
        ("in_chans", 0),
        ("in_chans", "3"),
        ("drop_path_rate", 1.0),
        ("distillation", "yes"),
        ("modulation", "gate"),
        ("layer_scale_init", 0.0),
        ("conv_kernel_size", 4),
        ("reduction", 0),
        ("stages", ()),
        ("drop_path", 0.1),
    ],
)
def test_an_invalid_option_is_named(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        create_model("iformer_t", **{option: value})  # type: ignore[arg-type]


def test_names_and_combinations_that_cannot_be(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean iformer_s"):
        create_model("iformer_ss")
    with pytest.raises(UserError, match="both given"):
        create_model("iformer_t", pretrained=True, weights=folder / "t4.pth")
    with pytest.raises(UserError, match="has weights already"):
        create_model(folder / "t4.safetensors", pretrained=True)
    with pytest.raises(ConfigError, match="leave out modulation"):
        create_model(folder / "t4.safetensors", modulation="output")
    with pytest.raises(WeightsError, match="does not exist"):
        create_model("iformer_t.safetensors")
    with pytest.raises(UserError, match="out_indices"):
        create_model("iformer_t", weights=folder / "t4.pth", features_only=True, out_indices=(4,))


@pytest.mark.parametrize("file", ["t4.safetensors", "t4.pth"])
def test_weights_of_a_local_file_whatever_its_format(folder: Path, file: str) -> None:
    reference = load(folder / "t4.safetensors")
    by_weights = create_model("iformer_t", weights=folder / file, drop_path_rate=0.1)
    by_name = create_model(str(folder / file))
    for model in (by_weights, by_name):
        assert model.config.num_classes == 4
        assert model.training
        assert all(map(torch.equal, model.state_dict().values(), reference.state_dict().values()))
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert by_weights.config.drop_path_rate == 0.1
    if file == "t4.safetensors":
        assert by_weights.metadata == reference.metadata
    else:
        assert by_weights.metadata.provenance == {"source_file": "t4.pth", "source_format": "authors"}


def test_timms_own_file(tmp_path: Path) -> None:
    oracle = timm.create_model("iformer_t", num_classes=3).eval()
    randomize(oracle)
    torch.save(oracle.state_dict(), tmp_path / "pytorch_model.bin")
    model = create_model("iformer_t", weights=tmp_path / "pytorch_model.bin").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), atol=1e-5, rtol=1e-4)


def test_another_head_is_replaced_only_when_asked(folder: Path) -> None:
    path = folder / "t4.safetensors"
    reference = load(path)
    for file, name, options in (
        (path, "iformer_t", {"num_classes": 9}),
        (path, "iformer_t_distilled", {}),
        (folder / "d4.safetensors", "iformer_t", {}),
    ):
        with pytest.raises(WeightsError, match="pass reset_head=True"):
            create_model(name, weights=file, **options)  # type: ignore[arg-type]
    model = create_model("iformer_t", weights=path, num_classes=9, reset_head=True)
    assert same_backbone(model, reference)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 9)
    assert model.metadata.class_names == ()
    assert model.metadata.metrics == {}
    again = create_model("iformer_t", weights=path, reset_head=True)
    assert again.config.num_classes == 4
    assert not torch.equal(again.head.classifier.linear.weight, reference.head.classifier.linear.weight)  # type: ignore
    plain = create_model("iformer_t", weights=folder / "d4.safetensors", reset_head=True)
    assert not plain.config.distillation
    assert same_backbone(plain, load(folder / "d4.safetensors"))
    two = create_model("iformer_t_distilled", weights=path, reset_head=True)
    two.set_distilled_training()
    assert len(two(torch.randn(2, 3, 32, 32))) == 2


def test_features_and_no_classes_leave_the_head_out(folder: Path, tmp_path: Path) -> None:
    path = folder / "t4.safetensors"
    backbone = create_model("iformer_t", weights=path, features_only=True, out_indices=(0, -1))
    assert type(backbone) is Backbone
    assert backbone.out_indices == (0, 3)
    assert same_backbone(backbone, load(path))
    pooled = create_model("iformer_t", weights=path, num_classes=0)
    assert pooled(torch.randn(2, 3, 32, 32)).shape == (2, 256)
    save(pooled, tmp_path / "pooled.safetensors")
    with pytest.raises(WeightsError, match="has no head; pass reset_head=True"):
        create_model("iformer_t", weights=tmp_path / "pooled.safetensors", num_classes=3)
    assert create_model(tmp_path / "pooled.safetensors").config.num_classes == 0


def test_another_network_is_an_error_that_says_in_what(folder: Path, tmp_path: Path) -> None:
    path = folder / "t4.safetensors"
    with pytest.raises(WeightsError, match=r"holds iformer_t, not iformer_s.*stage 3 channels"):
        create_model("iformer_s", weights=path)
    with pytest.raises(WeightsError, match="stage 3 modulation, stage 4 modulation"):
        create_model("iformer_t", weights=path, modulation="output")
    with pytest.raises(WeightsError, match="layer_scale_init"):
        create_model("iformer_t", weights=path, layer_scale_init=1e-6)


def test_other_input_channels_are_adapted_only_when_asked(folder: Path) -> None:
    path = folder / "t4.safetensors"
    with pytest.raises(WeightsError, match=r"has 3 input channels, but the network has 1; .*adapt_in_chans=True"):
        create_model("iformer_t", weights=path, in_chans=1)
    model = create_model("iformer_t", weights=path, in_chans=1, adapt_in_chans=True).eval()
    reference = load(path)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():  # a grey image as three equal channels
        torch.testing.assert_close(model(x), reference(x.expand(1, 3, 32, 32)), atol=1e-5, rtol=1e-4)
    with pytest.raises(WeightsError, match="pass in_chans=3"):
        create_model(path, in_chans=5)
    assert create_model(path, in_chans=5, adapt_in_chans=True).config.in_chans == 5


def test_a_network_of_ones_own_stages(tmp_path: Path) -> None:
    config = tiny_config()
    model = create_model("iformer_t", stages=config.stages, num_classes=5)
    assert model.config.stages == config.stages
    save(build(config), tmp_path / "tiny.safetensors")
    assert create_model(tmp_path / "tiny.safetensors").config == config
    assert (
        create_model("iformer_t", stages=config.stages, weights=tmp_path / "tiny.safetensors").config.num_classes
        == 5
    )


def test_the_same_weights_fit_every_attention_design(tmp_path) -> None:
    """By name, from a checkpoint, and with feature maps only; a checkpoint keeps its design."""
    plain = create_model("iformer_t", num_classes=3).eval()
    path = tmp_path / "plain.safetensors"
    save(plain, path)
    hybrid = create_model(path, attention="hybrid").eval()
    x = torch.randn(1, 3, 288, 320)
    assert not torch.allclose(hybrid(x), plain(x), atol=1e-5)
    kept = tmp_path / "hybrid.safetensors"
    save(hybrid, kept)
    assert torch.equal(load(kept)(x), hybrid(x))
    maps = create_model("iformer_t", weights=kept, attention="chunk_hybrid", features_only=True).eval()
    assert torch.equal(maps(x)[3], hybrid.forward_features(x))
    assert torch.equal(create_model(kept, attention="shma").eval()(x), plain(x))


def test_windows_without_a_design_are_refused() -> None:
    with pytest.raises(ConfigError, match="windows, window_size given without attention"):
        create_model("iformer_m", windows="paper", window_size=8)
    with pytest.raises(ConfigError, match="windows 'released' exist for iformer_m, iformer_l, iformer_l2 only"):
        create_model("iformer_s", attention="hybrid", windows="released")
