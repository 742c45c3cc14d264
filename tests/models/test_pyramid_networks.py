"""Detectors and segmenters: the same computation as the reference modules, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import iformer
from iformer import create_model
from iformer.config.detector import DetectorConfig
from iformer.config.network import NetworkConfig
from iformer.config.segmenter import SegmenterConfig, default_palette
from iformer.errors import ConfigError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.detector import Detector
from iformer.models.factory import build
from iformer.models.pyramid import Pyramid
from iformer.models.segmenter import Segmenter, SemanticHead
from iformer.models.weights.checkpoint import save
from iformer.models.weights.convert import convert_file
from iformer.models.weights.read import read_weights
from iformer.models.weights.resolve import load, load_classifier


@pytest.fixture(name="backbone")
def _backbone(tiny_backbone_config: NetworkConfig) -> NetworkConfig:
    return tiny_backbone_config


def detector_config(backbone: NetworkConfig, **fields: Any) -> DetectorConfig:
    options: dict[str, Any] = {
        "num_classes": 2,
        "size": 64,
        "max_size": 96,
        "fpn_channels": 16,
        "box_head_channels": 16,
        "mask_head_channels": 8,
        "mask_head_depth": 1,
        "rois": 8,
        "proposals": 16,
        "score_threshold": 0.0,
    }
    return DetectorConfig(backbone=backbone, **{**options, **fields})


def segmenter_config(backbone: NetworkConfig, **fields: Any) -> SegmenterConfig:
    options: dict[str, Any] = {
        "num_classes": 3, "size": 64, "max_size": 64, "fpn_channels": 16, "head_channels": 32,
    }  # fmt: skip
    return SegmenterConfig(backbone=backbone, **{**options, **fields})


def maps(channels: tuple[int, ...], side: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2, c, side >> level, side >> level) for level, c in enumerate(channels)]


def test_pyramid_is_that_of_segmentation_models_pytorch(backbone: NetworkConfig) -> None:
    """The lateral convolutions and the top-down sums; theirs has no 3x3 convolution behind them."""
    decoder = pytest.importorskip("segmentation_models_pytorch.decoders.fpn.decoder")
    torch.manual_seed(0)
    pyramid = Pyramid(Backbone(backbone), 16, pooled=False).eval()
    features = maps(backbone.channels)
    for layer in pyramid.fpn.layer_blocks:
        nn.init.dirac_(layer[0].weight)
        nn.init.zeros_(layer[0].bias)
    ours = list(pyramid.fpn({str(index): value for index, value in enumerate(features)}).values())
    theirs = pyramid.fpn.inner_blocks[3](features[3])
    expected = [theirs]
    for level in (2, 1, 0):
        block = decoder.FPNBlock(16, backbone.channels[level])
        block.skip_conv = pyramid.fpn.inner_blocks[level][0]
        theirs = block(theirs, features[level])
        expected.insert(0, theirs)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_semantic_head_is_that_of_segmentation_models_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs upsamples with corners aligned, ours as the reference implementations do; else the same."""
    decoder = pytest.importorskip("segmentation_models_pytorch.decoders.fpn.decoder")
    interpolate = nn.functional.interpolate

    def unaligned(x: torch.Tensor, **options: Any) -> torch.Tensor:
        return interpolate(x, **{**options, "align_corners": False})

    monkeypatch.setattr(decoder.F, "interpolate", unaligned)
    torch.manual_seed(0)
    head = SemanticHead(16, 32, 5).eval()
    features = maps((16, 16, 16, 16))
    branches = []
    for level in range(4):
        block = decoder.SegmentationBlock(16, 32, n_upsamples=level)
        ours = [value for step in head.branches[level] for value in step.state_dict().values()]  # type: ignore[union-attr]
        block.load_state_dict(dict(zip(block.state_dict(), ours, strict=True)))
        branches.append(block(features[level]))
    merged = decoder.MergeBlock("add")(branches)
    torch.testing.assert_close(head(features), head.classify(merged), atol=1e-5, rtol=1e-5)


def test_segmenter_gives_logits_of_the_image_s_size(backbone: NetworkConfig) -> None:
    network = Segmenter(segmenter_config(backbone)).eval()
    for height, width in ((64, 64), (50, 77)):
        assert network(torch.randn(2, 3, height, width)).shape == (2, 3, height, width)


def test_every_parameter_gets_a_gradient(backbone: NetworkConfig) -> None:
    torch.manual_seed(0)
    detector = Detector(detector_config(backbone)).train()
    boxes, masks = torch.tensor([[4.0, 4, 40, 44]]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 4:44, 4:40] = 1
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]},
    ]
    losses = detector([torch.rand(3, 64, 64), torch.rand(3, 50, 70)], targets)
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg",
    }  # fmt: skip
    sum(losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
    segmenter = Segmenter(segmenter_config(backbone)).train()
    segmenter(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in segmenter.named_parameters() if parameter.grad is None] == []


def test_images_with_no_object_alone_still_give_every_gradient(backbone: NetworkConfig) -> None:
    """A process whose images have no object has to join in every sum of gradients."""
    detector = Detector(detector_config(backbone)).train()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = detector([torch.rand(3, 64, 64)], [empty])
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    missing = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert missing == []


def test_detections_are_counted_from_class_zero(backbone: NetworkConfig) -> None:
    torch.manual_seed(0)
    detector = Detector(detector_config(backbone)).eval()
    found = detector([torch.rand(3, 80, 100)])[0]
    assert len(found["scores"]) > 0
    assert set(found["labels"].tolist()) <= {0, 1}
    assert found["masks"].shape[1:] == (1, 80, 100)
    assert (found["boxes"][:, 2] <= 100).all()
    assert (found["scores"].diff() <= 0).all()


def test_detections_below_a_score_cost_no_mask_and_change_no_other(backbone: NetworkConfig) -> None:
    torch.manual_seed(0)
    network = Detector(detector_config(backbone)).eval()
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((80, 90), (50, 70))]
    with torch.inference_mode():
        whole = network([image / 255 for image in images])
        limit = float(whole[0]["scores"][2])  # one that is found, so that equality counts
        detections = network.detect(images, min_score=limit)
    assert network.rcnn.roi_heads.score_thresh == 0.0
    for image, found, expected in zip(images, detections, whole, strict=True):
        kept = expected["scores"] >= limit
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(found[name], expected[name][kept])
        torch.testing.assert_close(found["masks"].stacked(), expected["masks"][kept], rtol=0, atol=1e-5)
        assert found["masks"].stacked().shape[2:] == image.shape[1:]
        assert found["masks"].maps.shape[1:] == (1, 28, 28), "masks of the image's size are not held"
    assert len(detections[0]["scores"]) == 3


def test_without_masks_it_is_a_faster_rcnn(backbone: NetworkConfig) -> None:
    detector = Detector(detector_config(backbone, masks=False))
    assert not any("mask" in name for name in detector.state_dict())
    assert set(detector.eval()([torch.rand(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}


def test_freezing(backbone: NetworkConfig) -> None:
    pyramid = Pyramid(Backbone(backbone), 16, pooled=False)
    norms = [module for module in pyramid.body.modules() if isinstance(module, nn.BatchNorm2d)]
    pyramid.freeze("norms")
    pyramid.train()
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    pyramid(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, norms, strict=True))  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert pyramid.body.stem.conv1.conv.weight.requires_grad  # type: ignore[union-attr]
    pyramid.freeze("weights")
    assert not any(parameter.requires_grad for parameter in pyramid.body.parameters())
    assert all(parameter.requires_grad for parameter in pyramid.fpn.parameters())
    pyramid(torch.randn(2, 3, 64, 64))
    assert not torch.equal(before[0], norms[0].running_mean)  # type: ignore[arg-type]
    pyramid.freeze("none")
    assert all(parameter.requires_grad for parameter in pyramid.parameters())


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_checkpoint_gives_the_network_back(backbone: NetworkConfig, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    network: Detector | Segmenter
    if kind == "detector":
        network, names = Detector(detector_config(backbone)).eval(), ("a", "b")
    else:
        config = segmenter_config(backbone, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
        network, names = Segmenter(config).eval(), ("a", "b", "c")
    path = tmp_path / "network.safetensors"
    save(network, path, class_names=names, metrics={"box_ap": 1.5})
    assert read_weights(path).task == {"detector": "detect", "segmenter": "segment"}[kind]
    loaded = load(path)
    assert type(loaded) is type(network)
    assert loaded.config == network.config
    assert loaded.metadata.class_names == names
    assert not loaded.training
    image = torch.rand(3, 64, 64)
    if isinstance(network, Detector):
        for name, value in network([image])[0].items():
            assert torch.equal(value, loaded([image])[0][name])
    else:
        assert torch.equal(network(image[None]), loaded(image[None]))


def test_checkpoints_of_other_kinds_are_told_apart(backbone: NetworkConfig, tmp_path: Path) -> None:
    save(build(backbone.with_options(num_classes=4)), tmp_path / "classifier.safetensors")
    save(Segmenter(segmenter_config(backbone)), tmp_path / "segmenter.safetensors")
    save(Detector(detector_config(backbone)), tmp_path / "detector.safetensors")
    assert type(load(tmp_path / "classifier.safetensors")) is Classifier
    for name, kind in (("segmenter", Segmenter), ("detector", Detector)):
        path = tmp_path / f"{name}.safetensors"
        assert type(load(path)) is kind
        with pytest.raises(WeightsError, match=f"holds a {name}; a classifier is needed"):
            load_classifier(path)
        with pytest.raises(WeightsError, match=f"holds a {name}, which iformer.load opens"):
            create_model(path)
        with pytest.raises(WeightsError, match=f"holds a {name}; write it with --to iformer"):
            convert_file(path, tmp_path / "out.pth", to="timm")
    with pytest.warns(DeprecationWarning, match=r"use iformer\.load"):
        assert type(iformer.load_dense(tmp_path / "segmenter.safetensors")) is Segmenter


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_the_backbone_of_a_trained_network_is_a_backbone(
    backbone: NetworkConfig, tmp_path: Path, kind: str
) -> None:
    network = Detector(detector_config(backbone)) if kind == "detector" else Segmenter(segmenter_config(backbone))
    path = tmp_path / "network.safetensors"
    save(network, path, class_names=("a", "b", "c")[: network.config.num_classes])
    maps = network.eval().pyramid.body(torch.ones(1, 3, 64, 64))
    for taken in (load(path, features_only=True), create_model(path, features_only=True).eval()):
        assert type(taken) is Backbone
        assert taken.metadata.class_names == ()
        assert taken.metadata.preprocessing.mean == network.config.mean
        assert all(map(torch.equal, taken(torch.ones(1, 3, 64, 64)), maps))


def test_a_converted_detector_is_the_same_in_half_the_size(backbone: NetworkConfig, tmp_path: Path) -> None:
    save(Detector(detector_config(backbone)), tmp_path / "detector.safetensors")
    done = convert_file(tmp_path / "detector.safetensors", tmp_path / "half.safetensors", to="iformer", half=True)
    assert done.bytes < 0.6 * (tmp_path / "detector.safetensors").stat().st_size
    assert load(tmp_path / "half.safetensors").config == detector_config(backbone)


def test_configs_name_what_is_wrong(backbone: NetworkConfig) -> None:
    for fields, words in (
        ({"num_classes": 0}, "num_classes"),
        ({"max_size": 32}, "max_size"),
        ({"rois": 0}, "rois"),
        ({"backbone": backbone.with_options(num_classes=3)}, "backbone"),
    ):
        with pytest.raises(ConfigError, match=words):
            detector_config(**{"backbone": backbone, **fields})
    for fields, words in (
        ({"head_channels": 48}, "head_channels"),
        ({"palette": ((1, 2, 3),)}, "palette"),
        ({"num_classes": 255}, "num_classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            segmenter_config(backbone, **fields)
    assert len(set(default_palette(150))) == 150
