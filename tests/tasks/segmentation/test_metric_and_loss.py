"""Segmentation: IoU from one confusion matrix, ignored pixels, and windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iformer.config.segmenter import IGNORED
from iformer.tasks.segmentation.inference import sliding_logits
from iformer.tasks.segmentation.loss import Segmentation, dice_loss
from iformer.tasks.segmentation.metric import SegmentationMetric


def test_figures_are_those_of_a_calculation_by_hand() -> None:
    metric = SegmentationMetric(("a", "b", "c", "nowhere"))
    true = torch.tensor([[[0, 0, 1, 1], [2, 2, IGNORED, IGNORED]]])
    said = torch.tensor([[[0, 1, 1, 1], [2, 0, 0, 3]]])
    metric.update(said, {"masks": true})
    metrics = metric.compute()
    ious = {name: scores["iou"] for name, scores in metrics["per_class"].items()}
    assert ious == pytest.approx({"a": 100 / 3, "b": 200 / 3, "c": 50.0, "nowhere": None}, abs=1e-3)
    assert metrics["miou"] == pytest.approx(50.0, abs=1e-3)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 4 / 6, abs=1e-3)
    assert metrics["mean_accuracy"] == pytest.approx((50 + 100 + 50) / 3, abs=1e-3)
    assert metrics["images"] == 1
    assert metrics["confusion"][0] == [1, 1, 0, 0]


def test_images_are_summed_not_averaged() -> None:
    torch.manual_seed(0)
    said, true = torch.randint(0, 3, (4, 8, 8)), torch.randint(0, 3, (4, 8, 8))
    at_once, one_by_one = (SegmentationMetric(("a", "b", "c")) for _ in range(2))
    at_once.update(said, {"masks": true})
    for index in range(4):
        one_by_one.update(said[index : index + 1], {"masks": true[index : index + 1]})
    assert at_once.compute() == one_by_one.compute()


class Pixelwise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0], 2 * images[:, 1], images[:, 2] - 1], 1)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (64, 41), (30, 100), (20, 20)])
def test_windows_of_a_pixelwise_network_are_the_whole(height: int, width: int) -> None:
    images = torch.randn(2, 3, height, width)
    torch.testing.assert_close(sliding_logits(Pixelwise(), images, window=32), Pixelwise()(images))


def test_loss_is_the_mean_over_pixels_that_are_of_a_class() -> None:
    images = torch.randn(2, 3, 8, 8)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[0, :4] = IGNORED
    values = Segmentation(("a", "b", "c")).loss(Pixelwise(), {"images": images, "masks": masks})
    expected = nn.functional.cross_entropy(Pixelwise()(images), masks, ignore_index=IGNORED)
    torch.testing.assert_close(values["loss"], expected)
    nothing = Segmentation(("a", "b", "c")).loss(
        Pixelwise(), {"images": images, "masks": torch.full_like(masks, IGNORED)}
    )
    assert nothing["loss"] == 0


def test_dice_loss_is_that_of_a_calculation_by_hand() -> None:
    masks = torch.tensor([[[0, 0, 0, 1], [IGNORED, 1, 0, 0]]])
    answers = torch.tensor([[[0, 0, 1, 1], [2, 0, 0, 0]]])
    logits = 100.0 * nn.functional.one_hot(answers, 4).permute(0, 3, 1, 2)
    # class 0: 4 hits, 5 answers, 5 pixels; class 1: 1 hit, 2 answers, 2 pixels; classes 2 and 3 have no pixel
    torch.testing.assert_close(dice_loss(logits, masks), torch.tensor(1 - (8 / 10 + 2 / 4) / 2))
    assert dice_loss(logits, torch.full_like(masks, IGNORED)) == 0


def test_dice_loss_is_that_of_another_library() -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, masks = torch.randn(2, 5, 8, 8), torch.randint(0, 4, (2, 8, 8))
    masks[0, :3] = IGNORED
    other = losses.DiceLoss("multiclass", classes=[0, 1, 2, 3], ignore_index=IGNORED)
    torch.testing.assert_close(dice_loss(logits, masks), other(logits, masks))


def test_the_weight_of_the_dice_loss() -> None:
    batch = {"images": torch.randn(2, 3, 8, 8), "masks": torch.randint(0, 3, (2, 8, 8))}
    values = Segmentation(("a", "b", "c"), dice_weight=0.25).loss(Pixelwise(), batch)
    torch.testing.assert_close(values["loss"], 0.75 * values["cross_entropy"] + 0.25 * values["dice"])
    plain = Segmentation(("a", "b", "c")).loss(Pixelwise(), batch)
    torch.testing.assert_close(plain["loss"], values["cross_entropy"])
    assert "dice" not in plain
