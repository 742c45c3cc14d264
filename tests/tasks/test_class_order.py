"""A data set may have any of a network's classes in any order; what is left out of an evaluation is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iformer.config.preprocessing import Preprocessing
from iformer.data.sources.detection import load_detection
from iformer.errors import DataError
from iformer.tasks.class_order import class_order
from iformer.tasks.detection import evaluate as detection
from iformer.tasks.detection.inference import ObjectDetector
from iformer.tasks.interface import EvaluateOptions
from iformer.tasks.segmentation import evaluate as segmentation
from iformer.tasks.segmentation.inference import PixelClassifier
from tiny.shapes import COLOURS

OPTIONS = EvaluateOptions(device=torch.device("cpu"), precision="fp32", workers=0)
COLOUR_OF = {"disc": COLOURS[0], "square": COLOURS[1]}


class PerfectDetector(ObjectDetector):
    """Finds the objects of its classes, and one of every other class in each image."""

    name, has_masks, detections, value_range = "perfect", False, 100, None

    def __init__(self, class_names: Sequence[str], data: Path) -> None:
        found = load_detection(data, workers=1).val
        self._names, self._samples = found.class_names, iter(found.samples)
        self.class_names, self.num_classes = tuple(class_names), len(class_names)

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        return [self._answer(next(self._samples).instances) for _ in images]

    def _answer(self, instances: Sequence[Any]) -> dict[str, Any]:
        seen = [(self._names[i.label], i.box) for i in instances if self._names[i.label] in self.class_names]
        seen += [(name, (1, 2, 30, 40)) for name in self.class_names if name not in self._names]
        boxes = torch.tensor([box for _, box in seen], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([self.class_names.index(name) for name, _ in seen], dtype=torch.int64)
        return {"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.5, len(seen))}


class PerfectSegmenter(PixelClassifier):
    """Knows the classes of its names by their colours; what it does not know is background."""

    def __init__(self, class_names: Sequence[str]) -> None:
        colours = tuple((k, k, k) for k in range(len(class_names)))
        super().__init__("perfect", tuple(class_names), colours, Preprocessing(size=(96, 96), crop_pct=1.0))

    def classes(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        found = torch.full(size, self.class_names.index("background"), dtype=torch.int64)
        for name, colour in COLOUR_OF.items():
            if name in self.class_names:
                same = (pixels == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0)
                found[same] = self.class_names.index(name)
        return found


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (("disc", "square"), []),
        (("square", "disc"), []),
        (("cone", "square", "disc"), ["the data has 2 of the network's 3 classes", "it does not have cone"]),
        (
            ("cone", "square"),
            ["of 6 objects (", "%): the network does not know disc", "it does not have cone"],
        ),
    ],
)
def test_objects_of_any_of_a_detectors_classes(
    shapes_data: Path, names: tuple[str, ...], notes: list[str]
) -> None:
    detector = PerfectDetector(names, shapes_data)
    evaluation, said = detection.evaluate_data(detector, str(shapes_data), OPTIONS)  # type: ignore[arg-type]
    assert evaluation.box_ap == pytest.approx(100)
    assert {name: row["box_ap"] for name, row in evaluation.metrics["per_class"].items()} == {
        name: None if name == "cone" else pytest.approx(100) for name in names
    }
    ids = {result["category_id"] for result in evaluation.results}
    assert {7 + ("disc", "square").index(name) for name in names if name != "cone"} <= ids
    assert len(ids) == len(names)
    assert all(any(note in line for line in said) for note in notes)
    assert bool(said) == bool(notes)


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (("background", "disc", "square"), []),
        (("square", "background", "disc"), []),
        (("cone", "square", "disc", "background"), ["the data has 3 of the network's 4 classes"]),
        (("disc", "background"), ["labelled pixels (", "%): the network does not know square"]),
    ],
)
def test_pixels_of_any_of_a_segmenters_classes(
    shapes_data: Path, names: tuple[str, ...], notes: list[str]
) -> None:
    segmenter = PerfectSegmenter(names)
    evaluation, said = segmentation.evaluate_data(segmenter, str(shapes_data), OPTIONS)  # type: ignore[arg-type]
    assert evaluation.miou == 100
    assert list(evaluation.metrics["per_class"]) == list(names)
    assert evaluation.metrics["per_class"].get("cone", {"iou": None})["iou"] is None
    assert all(any(note in line for line in said) for note in notes)
    assert bool(said) == bool(notes)


def test_the_share_of_the_pixels(shapes_data: Path) -> None:
    masks = [np.asarray(Image.open(path)) for path in sorted((shapes_data / "masks" / "val").iterdir())]
    total, squares = sum(mask.size for mask in masks), sum(int((mask == 2).sum()) for mask in masks)
    segmenter = PerfectSegmenter(("disc", "background"))
    _, (note,) = segmentation.evaluate_data(segmenter, str(shapes_data), OPTIONS)  # type: ignore[arg-type]
    share = 100 * (total - squares) / total
    assert note.startswith(f"used {total - squares:,} of {total:,} labelled pixels ({share:.1f} %)")


def test_predictions_of_a_class_that_the_data_lacks_are_wrong_but_not_measured(shapes_data: Path) -> None:
    segmenter = PerfectSegmenter(("background", "disc", "square", "cone"))
    whole = segmenter.classes

    def with_cones(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        found = whole(pixels, size)
        found[:48] = 3
        return found

    segmenter.classes = with_cones  # type: ignore[method-assign]
    metrics = segmentation.evaluate_data(segmenter, str(shapes_data), OPTIONS)[0].metrics  # type: ignore[arg-type]
    assert metrics["per_class"]["cone"]["iou"] is None
    assert metrics["pixel_accuracy"] == pytest.approx(50)
    assert 0 < metrics["miou"] < 100


def test_a_set_of_other_classes_is_refused(shapes_data: Path) -> None:
    with pytest.raises(DataError, match=r"only the network knows: cat; only the data has: disc, square"):
        detection.evaluate_data(PerfectDetector(("cat",), shapes_data), str(shapes_data), OPTIONS)  # type: ignore[arg-type]
    strict = EvaluateOptions(device=torch.device("cpu"), precision="fp32", workers=0, strict=True)
    with pytest.raises(DataError, match="only the data has: square"):
        segmentation.evaluate_data(PerfectSegmenter(("disc", "background")), str(shapes_data), strict)  # type: ignore[arg-type]
    assert class_order((), ("a", "b")) == (0, 1)


def test_the_splits_of_an_evaluated_set_may_have_other_categories(shapes_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes_data, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"] = [*content["categories"][::-1], {"id": 1, "name": "tree"}]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="categories of training and validation differ"):
        load_detection(data)
    assert load_detection(data, for_training=False).val.class_names == ("tree", "disc", "square")
