"""Our networks in other libraries, used as those libraries' documentation says. Slow imports: `sweep` only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.utils
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import detection
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

import iformer.timm
from iformer import create_model
from iformer.models.factory import build
from tiny.networks import randomize, tiny_config, tiny_variant

pytestmark = pytest.mark.sweep

NAME = iformer.timm.PREFIX + "iformer_m"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`iformer_m` with fewer channels, so that a test takes a second."""
    monkeypatch.setitem(iformer.config.variants.VARIANTS, "iformer_m", tiny_variant())


class PyramidBackbone(nn.Module):
    """The backbone that torchvision's documentation of `create_feature_extractor` builds for Mask R-CNN."""

    def __init__(self) -> None:
        super().__init__()
        model = create_model("iformer_m")
        self.body = create_feature_extractor(model, {f"stages.{k}": str(k) for k in range(4)})
        with torch.no_grad():
            channels = [m.shape[1] for m in self.body(torch.randn(2, 3, 64, 64)).values()]
        self.out_channels = 32
        self.fpn = FeaturePyramidNetwork(channels, out_channels=self.out_channels)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fpn(self.body(x))


def anchors() -> Any:
    return detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "fcos": lambda: detection.FCOS(
        PyramidBackbone(),
        num_classes=3,
        anchor_generator=detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4),
        min_size=64,
        max_size=96,
    ),
    "retinanet": lambda: detection.RetinaNet(
        PyramidBackbone(), num_classes=3, anchor_generator=anchors(), min_size=64, max_size=96
    ),
    "ssd": lambda: detection.ssd.SSD(
        PyramidBackbone(),
        detection.anchor_utils.DefaultBoxGenerator([[2]] * 4),
        size=(96, 96),
        num_classes=3,
        head=detection.ssd.SSDHead([32] * 4, [4] * 4, 3),
    ),
    "mask_rcnn": lambda: detection.MaskRCNN(
        PyramidBackbone(), num_classes=3, rpn_anchor_generator=anchors(), min_size=64, max_size=96
    ),
}


@pytest.mark.parametrize("name", list(DETECTORS))
def test_torchvisions_detectors_train_and_detect(name: str) -> None:
    torch.manual_seed(0)
    model = DETECTORS[name]().train()
    images = [torch.rand(3, 80, 96) for _ in range(2)]
    masks = torch.zeros(1, 80, 96, dtype=torch.uint8)
    masks[:, 10:50, 10:60] = 1
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 50.0]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model(images, [copy.deepcopy(target) for _ in images])
    sum(losses.values()).backward()
    stem = [p for n, p in model.named_parameters() if "body.stem" in n]
    assert stem
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stem)
    with torch.inference_mode():
        found = model.eval()(images)
    assert len(found) == 2
    assert {"boxes", "scores", "labels"} <= set(found[0])


@pytest.mark.parametrize("kind", ["Unet", "FPN"])
def test_segmentation_models_pytorch_by_name(kind: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, kind)(f"tu-{NAME}", encoder_weights=None, classes=4).train()
    x = torch.randn(2, 3, 64, 96)
    model(x).mean().backward()
    assert model.encoder.model.stem.conv1.conv.weight.grad is not None
    assert model.eval()(x).shape == (2, 4, 64, 96)
    gray = getattr(smp, kind)(f"tu-{NAME}", encoder_weights=None, in_channels=1)
    assert gray.eval()(x[:, :1]).shape == (2, 1, 64, 96)


def test_an_encoder_of_segmentation_models_pytorch_builds_only_its_depth() -> None:
    encoders = pytest.importorskip("segmentation_models_pytorch.encoders")
    encoder = encoders.get_encoder(f"tu-{NAME}", weights=None, depth=4).eval()
    assert [m.shape[1] for m in encoder(torch.randn(1, 3, 64, 64))] == encoder.out_channels == [3, 0, 8, 16, 24]
    assert len(encoder.model.stages) == 3


def test_transformers_timm_backbone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone=NAME, out_indices=[1, 3])
    backbone = transformers.TimmBackbone(config).eval()
    x = torch.randn(1, 3, 64, 64)
    maps = backbone(x).feature_maps
    assert [m.shape[1] for m in maps] == backbone.channels == [16, 32]
    states = backbone(x, output_hidden_states=True)
    assert [m.shape[1] for m in states.hidden_states] == [8, 16, 24, 32]
    assert all(map(torch.equal, states.feature_maps, maps))
    assert all(map(torch.equal, backbone(x).feature_maps, maps))  # the indices are as before


def batches() -> DataLoader[tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 3, 32, 32) * 0.1 + labels[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def test_an_accelerate_loop_trains_a_distilled_network() -> None:
    """As in accelerate's documentation; both heads learn although the loop knows of one output only."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = create_model("iformer_m_distilled", num_classes=2)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        accelerator.backward(loss)
        optimizer.step()
    changed = [
        name for name, _ in model.named_parameters() if not torch.equal(before[name], model.state_dict()[name])
    ]
    assert "head.classifier.linear.weight" in changed
    assert "head.distilled.linear.weight" in changed


def test_a_lightning_module_trains_and_its_checkpoint_loads(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = create_model("iformer_m", num_classes=2)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    lit = Lit()
    trainer.fit(lit, batches())
    trainer.save_checkpoint(tmp_path / "lit.ckpt")
    loaded = create_model("iformer_m", weights=tmp_path / "lit.ckpt").eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), lit.model.eval()(x))


def test_torchao_weight_only_int8() -> None:
    """torchao quantizes `nn.Linear`; the logits stay close."""
    quantization = pytest.importorskip("torchao.quantization")
    model = build(tiny_config()).eval()
    randomize(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        quantized = copy.deepcopy(model)
        quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
        actual = quantized(x)
    weight = quantized.head.classifier.linear.weight
    assert type(weight) is not nn.Parameter
    assert not torch.equal(actual, expected)
    assert torch.nn.functional.cosine_similarity(actual, expected).min() > 0.999


def test_timms_training_helpers() -> None:
    model = timm.create_model(NAME, num_classes=2)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.8)
    for images, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    average = timm.utils.ModelEmaV3(model)
    average.update(model)
    assert average.module.config == model.config
