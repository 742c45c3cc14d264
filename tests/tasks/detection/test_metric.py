"""COCO's metrics equal those of the reference implementation, for any distribution of images over ranks."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch

from iformer.tasks.detection.metric import DetectionMetric, class_agnostic, coco_results

SIZE = 120


def rectangle(box: list[float]) -> np.ndarray:
    left, top, width, height = (int(value) for value in box)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def made_up(images: int = 12, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Objects of three classes (one of them nowhere), some of them crowds, and detections near and beside them."""
    from faster_coco_eval import mask as operations

    generator = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    outputs = []
    for image in range(images):
        boxes, labels, scores = [], [], []
        for _ in range(int(generator.integers(0, 6))):
            side = float(generator.choice([12, 40, 100]))
            left, top = (float(generator.integers(0, SIZE - int(side))) for _ in range(2))
            label = int(generator.integers(2))
            box = [left, top, side, side]
            counts = operations.encode(np.asfortranarray(rectangle(box)))["counts"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": (3, 5)[label],
                    "bbox": box,
                    "area": side * side,
                    "iscrowd": int(generator.random() < 0.15),
                    "segmentation": {"size": [SIZE, SIZE], "counts": counts},
                }
            )
            for _ in range(int(generator.integers(0, 3))):
                moved = np.clip(np.array([left, top]) + generator.integers(-6, 7, 2), 0, SIZE - side)
                boxes.append([moved[0], moved[1], moved[0] + side, moved[1] + side])
                labels.append(int(generator.random() < 0.1) ^ label)
                scores.append(round(float(generator.random()), 2))
        masks = [rectangle([b[0], b[1], b[2] - b[0], b[3] - b[1]]) for b in boxes]
        order = np.argsort(-np.array(scores), kind="stable")
        outputs.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)[order],
                "labels": torch.tensor(labels, dtype=torch.int64)[order],
                "scores": torch.tensor(scores, dtype=torch.float32)[order],
                "masks": torch.from_numpy(np.array(masks, np.float32).reshape(-1, 1, SIZE, SIZE)[order]),
            }
        )
    truth = {
        "images": [{"id": image, "width": SIZE, "height": SIZE} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}, {"id": 9, "name": "nowhere"}],
    }
    return truth, outputs


def measured(
    truth: dict[str, Any], outputs: list[dict[str, torch.Tensor]], *, masks: bool = True
) -> dict[str, Any]:
    metric = DetectionMetric(truth, masks=masks)
    for image, found in enumerate(outputs):
        metric.update([found], {"image_ids": [image]})
    return metric.compute()


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_pycocotools(seed: int) -> None:
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    truth, outputs = made_up(seed=seed)
    metrics = measured(truth, outputs)
    results = [r for image, found in enumerate(outputs) for r in coco_results(found, image, [3, 5, 9], masks=True)]
    for prefix, kind, other in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
        with contextlib.redirect_stdout(io.StringIO()):
            reference = coco.COCO()
            reference.dataset = {**truth, "info": {}}
            reference.createIndex()
            found = reference.loadRes([{k: v for k, v in r.items() if k != other} for r in results])
            evaluator = cocoeval.COCOeval(reference, found, kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        ours = [metrics[f"{prefix}_{name}"] for name in names]
        assert ours == pytest.approx(100 * evaluator.stats[:6], abs=1e-3)
        assert 5 < ours[0] < 95
        for label, name in enumerate(("a", "b")):
            precision = evaluator.eval["precision"][:, :, label, 0, -1]
            assert metrics["per_class"][name][f"{prefix}_ap"] == pytest.approx(100 * precision.mean(), abs=1e-3)


def test_perfect_answers_are_a_hundred_percent() -> None:
    truth, _ = made_up()
    outputs = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([(3, 5).index(a["category_id"]) for a in own], dtype=torch.int64)
        outputs.append({"boxes": boxes, "labels": labels, "scores": torch.ones(len(own))})
    metrics = measured(truth, outputs, masks=False)
    assert metrics["box_ap"] == metrics["box_ap50"] == 100.0
    assert metrics["per_class"]["nowhere"] == {"box_ap": None, "box_ap50": None, "support": 0}
    assert "mask_ap" not in metrics
    assert metrics["images"] == 12


def test_class_agnostic_figures_do_not_depend_on_the_classes() -> None:
    truth, outputs = made_up()
    expected = measured(
        {
            **truth,
            "annotations": [{**annotation, "category_id": 3} for annotation in truth["annotations"]],
            "categories": truth["categories"][:1],
        },
        [{**found, "labels": torch.zeros_like(found["labels"])} for found in outputs],
        masks=False,
    )
    for shift in (0, 1, 2):
        shifted = [{**found, "labels": (found["labels"] + shift) % 3} for found in outputs]
        results = [r for k, found in enumerate(shifted) for r in coco_results(found, k, [3, 5, 9], masks=True)]
        agnostic = class_agnostic(truth, results)
        assert agnostic == {name: value for name, value in expected.items() if name.startswith("box")}
        assert 5 < agnostic["box_ap"] < 95


def test_no_detection_at_all_is_zero() -> None:
    truth, outputs = made_up()
    nothing = {name: value[:0] for name, value in outputs[0].items()}
    metrics = measured(truth, [nothing] * 12)
    assert metrics["box_ap"] == metrics["mask_ap"] == 0.0


def test_order_of_the_images_does_not_matter() -> None:
    truth, outputs = made_up()
    forwards, backwards = (DetectionMetric(truth, masks=False) for _ in range(2))
    for image in range(12):
        forwards.update([outputs[image]], {"image_ids": [image]})
        backwards.update([outputs[11 - image]], {"image_ids": [11 - image]})
    assert forwards.compute() == backwards.compute()


def test_more_than_a_hundred_objects_of_an_image_count() -> None:
    """COCO's limit of 100 would give 300 perfect boxes an AP of 33.7."""
    boxes = [[20.0 * (k % 20), 21.0 * (k // 20), 12.0, 12.0] for k in range(300)]
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 320, "width": 400}],
        "annotations": [
            {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 144.0, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "bar"}],
    }
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])

    def average_precision(count: int) -> float:
        found = {"boxes": corners[:count], "labels": torch.zeros(count, dtype=torch.int64)}
        metric = DetectionMetric(truth, masks=False)
        metric.update([{**found, "scores": torch.linspace(0.9, 0.8, count)}], {"image_ids": [1]})
        value: float = metric.compute()["box_ap"]
        return value

    assert average_precision(300) == 100.0
    assert average_precision(100) == pytest.approx(33.7, abs=0.1)
