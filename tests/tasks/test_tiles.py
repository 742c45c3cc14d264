"""Large images in tiles: every pixel is covered, and an object in several tiles is one detection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iformer.cli.main import main
from iformer.errors import UserError
from iformer.models.detector import PastedMasks
from iformer.models.weights.checkpoint import save
from iformer.tasks import tiles
from iformer.tasks.detection.inference import ObjectDetector, TiledDetector, merge, object_detector
from iformer.tasks.segmentation.predict import SegmentationPredictor
from iformer.tasks.tiles import Tiling, tiling
from tiny.dense import light_detector, light_segmenter


@pytest.mark.parametrize("size", [(640, 480), (100, 900), (641, 641), (64, 64), (1000, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image_and_inner_parts_cover_it_once(size: tuple[int, int], overlap: float) -> None:
    width, height = size
    cut = Tiling(128, overlap)
    covered, inner = np.zeros((height, width), int), np.zeros((height, width), int)
    tiles = cut.tiles(width, height)
    for tile in tiles:
        assert tile.right - tile.left == min(128, width)
        assert tile.bottom - tile.top == min(128, height)
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        part = cut.inner(tile, width, height)
        assert tile.left <= part.left < part.right <= tile.right
        assert tile.top <= part.top < part.bottom <= tile.bottom
        inner[part.top : part.bottom, part.left : part.right] += 1
    assert covered.min() >= 1
    assert (inner == 1).all()
    lefts = sorted({tile.left for tile in tiles})
    assert all(one + 128 - other >= round(128 * overlap) for one, other in pairwise(lefts))


@pytest.mark.parametrize(
    ("side", "overlap", "words"),
    [(8, None, "--tile is 8"), (64, 0.95, "--overlap is 0.95"), (None, 0.2, "--overlap is for --tile")],
)
def test_bad_options(side: int | None, overlap: float | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiling(side, overlap)
    assert tiling(None, None) is None
    with pytest.raises(UserError, match="the limit is 10,000"):
        Tiling(64, 0.9).tiles(4000, 4000)


class ByColour(ObjectDetector):
    """Finds the pixels of each value above 0, if they are at least a twentieth of the picture's longer side.

    A piece of an object has a higher score than the whole one.
    """

    name, class_names, num_classes, value_range = "fake", ("thing",), 1, None
    detections = 100
    has_masks = True

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = sizes

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        return [self._detect(image[0]) for image in images]

    def _detect(self, pixels_HW: Tensor) -> dict[str, Any]:
        boxes, scores = [], []
        for value in pixels_HW.unique().tolist():
            rows, columns = (pixels_HW == value).nonzero(as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if value and max(box[2] - box[0], box[3] - box[1]) >= max(pixels_HW.shape) / 20:
                boxes.append([float(edge) for edge in box])
                scores.append(0.9 if len(rows) < self.sizes[value] else 0.8)
        boxes_N4 = torch.tensor(boxes).reshape(-1, 4)
        maps = torch.ones(len(boxes), 1, 4, 4)
        height, width = pixels_HW.shape
        return {
            "boxes": boxes_N4,
            "scores": torch.tensor(scores),
            "labels": torch.zeros(len(boxes), dtype=torch.int64),
            "masks": PastedMasks(maps, boxes_N4, (height, width)),
        }


def test_an_object_in_several_tiles_is_one_detection_with_its_whole_box() -> None:
    image = torch.zeros(3, 700, 1000, dtype=torch.uint8)
    boxes = {
        1: (20, 30, 40, 45),  # small, inside a tile: the whole image does not show it
        2: (240, 100, 275, 125),  # small, on the edges of tiles
        3: (300, 300, 800, 600),  # larger than a tile
        4: (190, 400, 290, 500),
        5: (960, 660, 1000, 700),
    }
    for value, (left, top, right, bottom) in boxes.items():
        image[:, top:bottom, left:right] = value
    sizes = {value: int((image[0] == value).sum()) for value in boxes}
    plain = ByColour(sizes)
    assert len(plain.detect([image])[0]["scores"]) == 2
    found = TiledDetector(plain, Tiling(256, 0.25)).detect([image])[0]
    assert sorted(map(tuple, found["boxes"].int().tolist())) == sorted(boxes.values())
    assert (found["scores"].diff() <= 0).all()
    assert len(found["masks"]) == len(boxes)
    for box, mask in zip(found["boxes"].int().tolist(), found["masks"], strict=True):
        assert mask.shape == (1, 700, 1000)
        left, top, right, bottom = box
        assert mask[0, (top + bottom) // 2, (left + right) // 2] > 0.5
    small = image[:, :200, :200]
    assert torch.equal(
        TiledDetector(plain, Tiling(256)).detect([small])[0]["boxes"], plain.detect([small])[0]["boxes"]
    )


def test_merging_keeps_other_classes_and_objects_inside_objects() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [10, 10, 30, 30], [0, 0, 98, 100], [0, 0, 50, 100]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    cut = torch.tensor([False, False, False, True])
    assert merge(boxes, scores, torch.tensor([0, 0, 0, 0]), cut).tolist() == [0, 1]
    assert merge(boxes, scores, torch.tensor([0, 0, 1, 2]), cut).tolist() == [3, 0, 1, 2]
    empty = torch.zeros(0)
    assert merge(empty.reshape(0, 4), empty, empty.long(), empty.bool()).tolist() == []


def test_a_segmenter_in_tiles_answers_each_pixel_from_the_middle_of_a_tile(tmp_path: Path) -> None:
    predictor = SegmentationPredictor(light_segmenter(), tiling=Tiling(64, 0.25))
    whole = SegmentationPredictor(light_segmenter())
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)).resize((150, 100))
    classes = predictor.answer(image)
    assert classes.shape == (100, 150)
    first = whole.answer(image.crop((0, 0, 64, 64)))
    assert np.array_equal(classes[:50, :50], first[:50, :50])
    assert np.array_equal(predictor.answer(image.crop((0, 0, 60, 50))), whole.answer(image.crop((0, 0, 60, 50))))


@pytest.mark.parametrize("build", [light_detector, light_segmenter])
def test_predict_in_tiles(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(build(), tmp_path / "net.safetensors")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    arguments = ["predict", str(tmp_path / "large.png"), "--weights", str(tmp_path / "net.safetensors")]
    arguments += ["--device", "cpu", "--out"]
    assert main([*arguments, str(tmp_path / "out"), "--tile", "96", "--overlap", "0.2"]) == 0
    with Image.open(tmp_path / "out" / "large.png") as picture:
        assert picture.size == (200, 150)
    assert main([*arguments, str(tmp_path / "other"), "--overlap", "0.2"]) == 1
    assert "--overlap is for --tile; give both" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_an_image_of_many_tiles_says_how_many_are_done(
    task: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiles, "_NOTE_SECONDS", 0.0)
    cut = Tiling(64, 0.0)
    if task == "detect":
        detector = TiledDetector(object_detector(light_detector().eval()), cut)
        detector.detect([torch.zeros(3, 64, 192, dtype=torch.uint8)])
    else:
        SegmentationPredictor(light_segmenter().eval(), tiling=cut).answer(Image.new("RGB", (192, 64)))
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"note: {done} of the image's 3 tiles are done" for done in range(3)]
