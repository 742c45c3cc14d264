"""COCO's average precision of boxes and masks.

Shape letters: N detections, K classes, H and W an image's sides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iformer.data.detection import encode_mask
from iformer.dependencies import require
from iformer.training.distributed import all_gather

_AREAS = {"small": 1, "medium": 2, "large": 3}
"""Index of each range of areas in COCO's results: below 32 x 32 pixels, below 96 x 96, and above."""

_MAX_DETECTIONS = 100
"""COCO's limit of detections of an image. The limit rises if the network reports more on any image."""


class DetectionMetric:
    """COCO's average precision, computed by faster-coco-eval."""

    def __init__(self, ground_truth: Mapping[str, Any], *, masks: bool) -> None:
        """Prepare an evaluation.

        Args:
            ground_truth: COCO's `images`, `annotations` and `categories`; categories are in the order of labels.
            masks: also evaluate masks.

        Raises:
            MissingDependencyError: faster-coco-eval is not installed.
        """
        self._library = require("faster_coco_eval", extra="detect")
        self._ground_truth = ground_truth
        self._masks = masks
        self._category_ids = [category["id"] for category in ground_truth["categories"]]
        self._found: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        """All detections in COCO's result format, after `compute`."""

    def update(self, outputs: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> None:
        """Add the detections of the images with the ids `batch["image_ids"]`."""
        for image_id, found in zip(batch["image_ids"], outputs, strict=True):
            self._found += coco_results(found, image_id, self._category_ids, masks=self._masks)

    def compute(self) -> dict[str, Any]:
        """Return the metrics that `DetectionEvaluation` documents, in percent. Every rank must call it."""
        found = [result for share in all_gather(self._found) for result in share]
        # the order of detections with equal scores matters, and must not depend on the number of ranks
        self.results = found = sorted(found, key=lambda result: int(result["image_id"]))
        boxes = [{k: v for k, v in result.items() if k != "segmentation"} for result in found]
        metrics, per_class = self._average_precision("box", "bbox", boxes)
        if self._masks:
            # without boxes, so that the area of the mask decides between small, medium and large
            masks = [{k: v for k, v in result.items() if k != "bbox"} for result in found]
            mask_metrics, mask_per_class = self._average_precision("mask", "segm", masks)
            metrics |= mask_metrics
            per_class = [box | mask for box, mask in zip(per_class, mask_per_class, strict=True)]
        support = Counter(a["category_id"] for a in self._ground_truth["annotations"] if not a["iscrowd"])
        return {
            **metrics,
            "images": len(self._ground_truth["images"]),
            "per_class": {
                category["name"]: {**scores, "support": support[category["id"]]}
                for category, scores in zip(self._ground_truth["categories"], per_class, strict=True)
            },
        }

    def _average_precision(
        self, prefix: str, kind: str, results: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the metrics over all classes, and AP and AP50 of each class."""
        quiet = logging.getLogger(__name__).debug
        truth = self._library.COCO({**self._ground_truth}, use_deepcopy=True, print_function=quiet)
        evaluator = self._library.COCOeval_faster(truth, truth.loadRes(results), kind, print_function=quiet)
        most = max(Counter(result["image_id"] for result in results).values(), default=0)
        evaluator.params.maxDets = [1, 10, max(most, _MAX_DETECTIONS)]
        evaluator.evaluate()
        evaluator.accumulate()
        # IoU thresholds x recalls x classes x areas x limits of detections
        precision_TRKAM = np.asarray(evaluator.eval["precision"])
        overall_TRK = precision_TRKAM[:, :, :, 0, -1]
        metrics: dict[str, Any] = {
            f"{prefix}_ap": _percent(overall_TRK) or 0.0,
            f"{prefix}_ap50": _percent(overall_TRK[0]) or 0.0,
            f"{prefix}_ap75": _percent(overall_TRK[5]) or 0.0,
        }
        for name, area in _AREAS.items():
            metrics[f"{prefix}_ap_{name}"] = _percent(precision_TRKAM[:, :, :, area, -1])
        columns = list(evaluator.params.catIds)  # in ascending order
        per_class = [
            {
                f"{prefix}_ap": _percent(overall_TRK[:, :, label]),
                f"{prefix}_ap50": _percent(overall_TRK[0, :, label]),
            }
            for label in map(columns.index, self._category_ids)
        ]
        return metrics, per_class


def class_agnostic(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of boxes with all classes counted as one: what wrong classes do not explain.

    Args:
        ground_truth: see `DetectionMetric`.
        results: detections in COCO's result format, all of them; other ranks are not asked.
    """
    annotations = [{**annotation, "category_id": 0} for annotation in ground_truth["annotations"]]
    categories = [{"id": 0, "name": "object"}]
    metric = DetectionMetric({**ground_truth, "annotations": annotations, "categories": categories}, masks=False)
    boxes = [{k: v for k, v in result.items() if k != "segmentation"} | {"category_id": 0} for result in results]
    return metric._average_precision("box", "bbox", boxes)[0]


def coco_results(
    found: Mapping[str, Any], image_id: int, category_ids: Sequence[int], *, masks: bool
) -> list[dict[str, Any]]:
    """Return one image's detections (see `Detector.detect`) in COCO's result format, the best score first."""
    boxes_N4 = found["boxes"].float().cpu()
    widths_N4 = torch.cat([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], 1)
    results: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for label, box, score in zip(
            found["labels"].tolist(), widths_N4.tolist(), found["scores"].float().tolist(), strict=True
        )
    ]
    if masks:
        for result, mask_1HW in zip(results, found["masks"], strict=True):
            mask_HW = (mask_1HW[0] > 0.5).to(torch.uint8).cpu().numpy()
            result["segmentation"] = {
                "size": list(mask_HW.shape),
                "counts": encode_mask(mask_HW).decode("ascii"),
            }
    return results


def _percent(precision: np.ndarray) -> float | None:
    """Return the mean in percent of the values other than -1 (no object); None if there are no such values."""
    known = precision[precision > -1]
    return round(100 * float(known.mean()), 4) if known.size else None
