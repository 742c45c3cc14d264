"""Training images of detection and segmentation: targets follow the pixels, and augmentation is seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from iformer.config.segmenter import IGNORED
from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.tasks.detection.config import DetectionAugment, DetectionRecipe
from iformer.tasks.detection.dataset import DetectionImages
from iformer.tasks.segmentation.config import SegmentationAugment, SegmentationRecipe
from iformer.tasks.segmentation.dataset import PhotometricDistortion, SemanticImages, fitted


def reddish(pixels_CHW: Tensor) -> Tensor:
    return (pixels_CHW[0].int() - pixels_CHW[2].int()) > 60


def bluish(pixels_CHW: Tensor) -> Tensor:
    return (pixels_CHW[2].int() - pixels_CHW[0].int()) > 60


def test_boxes_and_masks_flip_with_their_image(shapes_data: Path) -> None:
    train = load_detection(shapes_data).train
    plain, flipped = (
        DetectionImages(
            train, DetectionRecipe(epochs=1, lr=1.0, augment=DetectionAugment(hflip=share)), masks=True
        )
        for share in (0.0, 1.0)
    )
    keys = [(0, index) for index in range(8)]
    one, other = plain.batch(keys), flipped.batch(keys)
    for image, mirrored in zip(one["images"], other["images"], strict=True):
        assert torch.equal(image.flip(2), mirrored)
    for image, target in zip(other["images"], other["targets"], strict=True):
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            assert (reddish if label == 0 else bluish)(image)[mask.bool()].all()
            rows, columns = (np.flatnonzero(mask.numpy().any(axis)) for axis in (1, 0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert other["targets"][7]["boxes"].shape == (0, 4)
    assert other["targets"][7]["masks"].shape == (0, 96, 96)


def test_augmentation_depends_on_seed_epoch_and_index_only(shapes_data: Path) -> None:
    train = load_detection(shapes_data).train

    def image(seed: int, epoch: int) -> Tensor:
        recipe = DetectionRecipe(epochs=1, lr=1.0, seed=seed, augment=DetectionAugment(color_jitter=0.5))
        batch = DetectionImages(train, recipe, masks=False).batch([(epoch, 1)])
        pixels: Tensor = batch["images"][0]
        return pixels

    torch.manual_seed(5)
    first = image(0, 0)
    torch.manual_seed(6)
    assert torch.equal(image(0, 0), first)
    assert not torch.equal(image(0, 1), first)
    assert not torch.equal(image(1, 0), first)


@pytest.mark.parametrize("resize", [(0.5, 0.6), (1.0, 1.0), (1.5, 2.0)])
def test_masks_are_cut_as_their_images(shapes_data: Path, resize: tuple[float, float]) -> None:
    recipe = SegmentationRecipe(
        epochs=1,
        lr=1.0,
        augment=SegmentationAugment(resize=resize, photometric=False),
        size=64,
        max_size=64,
    )
    images = SemanticImages(load_semantic(shapes_data).train, recipe, size=64, max_size=64, fill=(0.5, 0.5, 0.5))
    batch = images.batch([(epoch, index) for epoch in range(3) for index in range(6)])
    assert batch["images"].shape == (18, 3, 64, 64)
    assert batch["masks"].shape == (18, 64, 64)
    for pixels_CHW, mask_HW in zip(batch["images"], batch["masks"], strict=True):
        assert (pixels_CHW[:, mask_HW == IGNORED] == 128).all()
        for label, coloured in ((1, reddish), (2, bluish)):
            inside = mask_HW == label
            if inside.sum() > 50:  # the two are resized differently, so edges may disagree
                assert (coloured(pixels_CHW) & inside).sum() > 0.9 * inside.sum()
    if resize[0] < 1:
        assert (batch["masks"] == IGNORED).any()


def test_crops_of_a_scheduled_size_show_the_same(shapes_data: Path) -> None:
    recipe = SegmentationRecipe(
        epochs=2,
        lr=1.0,
        augment=SegmentationAugment(resize=(1.0, 1.0), hflip=0.0, photometric=False),
        size=96,
        max_size=96,
        size_schedule=((0, 64), (1, 96)),
    )
    images = SemanticImages(load_semantic(shapes_data).train, recipe, size=96, max_size=96, fill=(0.5, 0.5, 0.5))
    for index in range(4):
        small, large = (images.batch([(epoch, index)])["masks"][0] for epoch in (0, 1))
        assert (small.shape, large.shape) == ((64, 64), (96, 96))
        shares = [torch.bincount(mask.flatten(), minlength=256) / mask.numel() for mask in (small, large)]
        assert (shares[0] - shares[1]).abs().max() < 0.02


def test_photometric_distortion_changes_colours_and_no_mask(shapes_data: Path) -> None:
    train = load_semantic(shapes_data).train

    def batch(photometric: bool) -> dict[str, Tensor]:
        recipe = SegmentationRecipe(
            epochs=1, lr=1.0, augment=SegmentationAugment(photometric=photometric), size=64, max_size=64
        )
        return SemanticImages(train, recipe, size=64, max_size=64, fill=(0.0, 0.0, 0.0)).batch(
            [(0, index) for index in range(8)]
        )

    one, other = batch(True), batch(False)
    assert not torch.equal(one["images"], other["images"])
    assert (one["masks"] == other["masks"]).float().mean() > 0.7  # flips are drawn after it


def test_photometric_distortion_keeps_the_order_of_channels() -> None:
    image = torch.tensor([200, 100, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    distort = PhotometricDistortion()
    torch.manual_seed(0)
    for _ in range(50):
        red, green, blue = distort(image)[:, 0, 0].tolist()
        assert red > green >= blue


def test_evaluation_changes_nothing_but_the_size(shapes_data: Path) -> None:
    val = load_semantic(shapes_data).val
    batch = SemanticImages(val, size=48, max_size=64, fill=(0, 0, 0)).batch([(0, 0), (0, 1)])
    assert [tuple(image.shape) for image in batch["images"]] == [(3, 48, 48)] * 2
    assert [tuple(mask.shape) for mask in batch["masks"]] == [(96, 96)] * 2


def test_sizes_keep_the_shape() -> None:
    assert fitted((640, 480), 800, 1333) == (1067, 800)
    assert fitted((2000, 500), 512, 1024) == (1024, 256)
    assert fitted((5000, 2), 512, 512) == (512, 1)
