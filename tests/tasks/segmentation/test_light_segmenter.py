"""The light segmenter: its cost, its fold, its letterbox, and that it learns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from iformer.config.segmenter import LightSegmenterConfig
from iformer.config.variants import network_config
from iformer.data.sources.masks import load_semantic
from iformer.errors import ConfigError, DataError, UserError
from iformer.models.complexity import count_macs
from iformer.models.letterbox import letterbox
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.weights.checkpoint import save
from iformer.models.weights.resolve import load
from iformer.tasks.interface import EvaluateOptions, PredictOptions
from iformer.tasks.segmentation.config import SegmentationRecipe
from iformer.tasks.segmentation.evaluate import evaluate_data, evaluate_set
from iformer.tasks.segmentation.inference import letterboxed_classes
from iformer.tasks.segmentation.predict import SegmentationPredictor, open_predictor
from iformer.training.loop import train
from tiny import dense
from tiny.networks import randomize
from tiny.pyramid import backbone_config, light_segmentation


def network(**fields: object) -> LightSegmenter:
    config = LightSegmenterConfig(
        backbone=backbone_config(), num_classes=3, channels=16, **{"input_size": (64, 96), **fields}
    )  # type: ignore[arg-type]
    torch.manual_seed(0)
    return LightSegmenter(config)


def test_iformer_t_at_512_takes_at_most_5_gmacs() -> None:
    backbone = network_config("iformer_t").with_options(num_classes=0)
    with torch.device("meta"):
        model = LightSegmenter(LightSegmenterConfig(backbone=backbone, num_classes=150, input_size=(512, 512)))
    assert count_macs(model, (512, 512)) <= 5e9


def test_logits_have_the_image_s_size() -> None:
    model = network().eval()
    for size in ((64, 96), (50, 77)):
        assert model(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    assert model.coarse_logits(torch.rand(2, 3, 64, 96)).shape == (2, 3, 16, 24)


@torch.no_grad()
def test_folding_changes_nothing() -> None:
    model = network().eval()
    randomize(model)
    images = torch.randn(2, 3, 64, 96)
    folded = model.fold()
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    expected = model(images)
    assert torch.allclose(folded(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)], "the network itself is unchanged"


def test_a_checkpoint_is_the_network(tmp_path: Path) -> None:
    model = network(palette=((1, 2, 3), (4, 5, 6), (7, 8, 9))).eval()
    save(model, tmp_path / "light.safetensors", class_names=("a", "b", "c"))
    loaded = load(tmp_path / "light.safetensors")
    assert type(loaded) is LightSegmenter
    assert loaded.config == model.config
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(loaded(images), model(images))
    backbone = load(tmp_path / "light.safetensors", features_only=True)
    assert all(map(torch.equal, backbone(images), model.pyramid.body(images)))
    assert backbone.metadata.preprocessing.letterbox is None, "a classifier made of it crops its images"


@pytest.mark.parametrize("size", [(64, 96), (60, 30), (33, 200), (128, 192)])
def test_classes_lie_where_the_image_has_them(size: tuple[int, int]) -> None:
    """A network that answers by the colours of its input, which is white inside a rectangle."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    rows, columns = slice(size[0] // 4, size[0] // 2), slice(size[1] // 3, 2 * size[1] // 3)
    image[:, rows, columns] = 255
    placed = letterbox(image, (64, 96), fill=(127, 127, 127))
    white = placed.image[None, :1] / 255
    logits = F.avg_pool2d(torch.cat([1 - white, white], 1), 4)
    classes = letterboxed_classes(logits, (64, 96), size)
    expected = (image[0] > 127).long()
    assert classes.shape == expected.shape
    assert (classes == expected).float().mean() > 0.85
    inner = classes[rows, columns]
    assert inner[inner.shape[0] // 2, inner.shape[1] // 2] == 1


@pytest.mark.parametrize("size", [(40, 200), (300, 30), (1, 1)])
def test_images_of_any_sizes(size: tuple[int, int]) -> None:
    from PIL import Image

    answer = SegmentationPredictor(network()).answer(Image.new("RGB", (size[1], size[0])))
    assert answer.shape == size


def test_windows_are_for_semantic_fpn() -> None:
    with pytest.raises(UserError, match="--sliding is for Semantic FPN"):
        SegmentationPredictor(network(), sliding=True)


@pytest.mark.sweep
def test_it_overfits_eight_images(shapes_data: Path, tmp_path: Path) -> None:
    fields = {"epochs": 60, "warmup_epochs": 3, "hflip": 0.0, "eval_every": 60, "ema_decay": None, "lr": 6e-3}
    result = train(light_segmentation(shapes_data, tmp_path / "run", memorise=True, fields=fields, report=True))
    assert result.metrics["miou"] > 95
    assert (tmp_path / "run" / "report.md").read_text().count("predictions.png") == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"network": "light", "size": 100}, r"recipe\.size is 100"),
        ({"network": "light", "size": 96, "size_schedule": [[0, 80]]}, r"recipe\.size_schedule"),
        ({"network": "light", "sliding": True}, r"recipe\.sliding"),
        ({"network": "lighter"}, r"recipe\.network is 'lighter'"),
        ({"light": {"kernel_size": 4}}, r"recipe\.light\.kernel_size"),
    ],
)
def test_recipes_that_cannot_work(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        SegmentationRecipe.from_plain({"task": "segment", "epochs": 1, "lr": 0.1, **fields})


def test_predictions_come_from_a_folded_copy() -> None:
    model = network().eval()
    randomize(model)
    with torch.no_grad():  # each class wins somewhere
        model.head.classify.bias -= model(torch.rand(1, 3, 64, 96)).mean((0, 2, 3))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    folded = open_predictor(model, PredictOptions(device=torch.device("cpu"))).answer(image)
    expected = SegmentationPredictor(model).answer(image)
    assert len(np.unique(expected)) == 3
    assert (folded != expected).mean() < 0.01
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)], "the network itself is unchanged"


def test_masks_without_a_class_are_an_error(shapes_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_data, data)
    for path in (data / "masks" / "val").glob("*.png"):
        with Image.open(path) as mask:
            Image.new("L", mask.size, 255).save(path)
    with pytest.raises(DataError, match="the masks have no pixel of a class; 255 means no class"):
        evaluate_set(dense.light_segmenter(), load_semantic(data, workers=1).val, workers=0)


def test_evaluations_come_from_a_folded_copy(shapes_data: Path) -> None:
    model = dense.light_segmenter()
    calls: list[int] = []
    model.pyramid.body.register_forward_hook(lambda *_: calls.append(1))  # a folded copy has another body
    expected = evaluate_set(model, load_semantic(str(shapes_data)).val, workers=0)
    assert len(calls) == 4
    options = EvaluateOptions(device=torch.device("cpu"), workers=0)
    found, _ = evaluate_data(model, str(shapes_data), options)
    assert len(calls) == 4
    total = np.sum(expected.metrics["confusion"])
    moved = np.abs(np.subtract(found.metrics["confusion"], expected.metrics["confusion"])).sum()
    assert total > 0
    assert moved < 1e-3 * total
    folded, _ = evaluate_data(model.fold(), str(shapes_data), options)
    assert folded.metrics == found.metrics
