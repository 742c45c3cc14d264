"""Precision, recall and F1 by confidence, and the confusion matrix, against COCO's metric and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.data.detection import DetectionSample, DetectionSet, Instance
from iformer.tasks.detection.confidence import THRESHOLDS, confidence_curves, confusion_matrix
from iformer.tasks.detection.metric import DetectionMetric
from iformer.tasks.detection.report import draw_confidence, draw_object_confusion


def image_set(*images: list[tuple[int, list[float], bool]]) -> DetectionSet:
    """Images 100 x 100 with objects: label, box, crowd."""
    samples = [
        DetectionSample(
            Path(f"{number}.png"),
            number,
            100,
            100,
            tuple(Instance(label, tuple(box), None, crowd, box[2] * box[3]) for label, box, crowd in objects),  # type: ignore[arg-type]
        )
        for number, objects in enumerate(images)
    ]
    return DetectionSet(
        name="set", class_names=("a", "b"), category_ids=(3, 7), samples=tuple(samples), root=Path()
    )


def result(image_id: int, label: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": (3, 7)[label], "bbox": box, "score": score}


def random_data() -> tuple[DetectionSet, list[dict[str, Any]]]:
    generator = np.random.default_rng(0)
    images, results = [], []
    for number in range(30):
        objects = []
        for _ in range(int(generator.integers(1, 5))):
            label, box = int(generator.integers(2)), [*generator.uniform(0, 60, 2), *generator.uniform(8, 40, 2)]
            objects.append((label, [float(v) for v in box], bool(generator.random() < 0.1)))
            if generator.random() < 0.8:
                shifted = [float(v) for v in np.array(box) + generator.normal(0, 3, 4)]
                results.append(result(number, label, shifted, float(generator.random())))
        for _ in range(2):
            box = [float(v) for v in (*generator.uniform(0, 60, 2), *generator.uniform(8, 40, 2))]
            results.append(result(number, int(generator.integers(2)), box, float(generator.random())))
        images.append(objects)
    return image_set(*images), results


def test_precision_and_recall_are_those_of_coco() -> None:
    found, results = random_data()
    samples = (s._replace(instances=tuple(i for i in s.instances if not i.crowd)) for s in found.samples)
    found = replace(found, samples=tuple(samples))
    metric = DetectionMetric(found.ground_truth(), masks=False)
    metric._found = results
    expected = metric.compute()
    curves = confidence_curves(found, results)
    grid = np.linspace(0, 1, 101)
    for name, (recall, precision) in zip(curves.class_names, curves.ranked, strict=True):
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        positions = np.searchsorted(recall, grid, side="left")
        average = np.where(positions < len(recall), envelope[np.minimum(positions, len(recall) - 1)], 0).mean()
        assert 100 * average == pytest.approx(expected["per_class"][name]["box_ap50"], abs=1e-2)


def test_each_threshold_counts_what_is_reported() -> None:
    found, results = random_data()
    curves = confidence_curves(found, results)
    for index in (0, 35, 80):
        reported = [one for one in results if one["score"] >= THRESHOLDS[index]]
        again = confidence_curves(found, reported)
        assert np.allclose(curves.precision[:, index], again.precision[:, 0])
        assert np.allclose(curves.recall[:, index], again.recall[:, 0])


def test_the_best_confidence_by_hand() -> None:
    box, far = [10.0, 10, 20, 20], [60.0, 60, 20, 20]
    found = image_set([(0, box, False)], [(1, box, False), (1, far, True)])
    results = [
        result(0, 0, box, 0.8),
        result(0, 0, far, 0.3),  # wrong
        result(1, 1, box, 0.6),
        result(1, 1, box, 0.5),  # a second one on the same object: wrong
        result(1, 1, [62.0, 62, 10, 10], 0.9),  # in the crowd: not counted
    ]
    curves = confidence_curves(found, results)
    confidence, f1 = curves.best
    assert f1 == pytest.approx(1.0)
    assert confidence == pytest.approx(0.55)  # the middle of 0.51 to 0.60
    assert curves.at_best() == (1.0, 1.0)
    assert curves.precision[:, 0].tolist() == [0.5, 0.5]
    assert curves.recall[:, 90].tolist() == [0.0, 0.0]
    assert curves.f1[:, 90].tolist() == [0.0, 0.0]


def test_the_confusion_matrix_by_hand() -> None:
    one, two, three = [10.0, 10, 20, 20], [50.0, 10, 20, 20], [10.0, 60, 20, 20]
    found = image_set([(0, one, False), (0, two, False), (1, three, False), (1, [60.0, 60, 30, 30], True)])
    results = [
        result(0, 0, one, 0.9),
        result(0, 1, two, 0.8),  # taken for b
        result(0, 1, [40.0, 80, 10, 10], 0.7),  # nothing is there
        result(0, 1, [65.0, 65, 10, 10], 0.7),  # in the crowd
        result(0, 1, three, 0.2),  # not reported
    ]
    assert confusion_matrix(found, results, min_score=0.5).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert confusion_matrix(found, results, min_score=0.1).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert confusion_matrix(found, [], min_score=0.5).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("nothing", [False, True])
def test_pictures_of_any_results(nothing: bool, tmp_path: Path) -> None:
    found, results = random_data()
    results = [] if nothing else results
    draw_confidence(confidence_curves(found, results), tmp_path / "confidence.png")
    counts = confusion_matrix(found, results, min_score=0.5)
    draw_object_confusion(counts, ["$a", "b" * 60], tmp_path / "confusion.png")
    for name in ("confidence", "confusion"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400
