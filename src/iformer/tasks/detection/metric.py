"""COCO's average precision of boxes and masks.

Shape letters: N detections, K classes, H and W an image's sides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.training.distributed import all_gather

_AREAS = {"small": 1, "medium": 2, "large": 3}
"""TrainProgress of each range of areas in COCO's results: below 32^2 pixels, below 96^2, and above."""

_OF_CLASSES = "of_classes_"


class DetectionMetric:
    """COCO's average precision, by faster-coco-eval.

    The detections of several processes are joined as lists, so that a process may have any number of images,
    and of detections, none included.
    """

    def __init__(self, ground_truth: Mapping[str, Any], *, masks: bool) -> None:
        """`ground_truth`: COCO's `images`, `annotations` and `categories`, in the order of the labels.

        Raises:
            MissingDependencyError: faster-coco-eval is not installed.
        """
        self._library = require("faster_coco_eval", extra="detect")
        self._ground_truth = ground_truth
        self._masks = masks
        self._found: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        """All detections as COCO's results, once `compute` has joined them."""

    def update(self, outputs: Sequence[Mapping[str, Tensor]], batch: Mapping[str, Any]) -> None:
        """Add the detections of some images; `batch["image_ids"]` says which they are."""
        for image_id, found in zip(batch["image_ids"], outputs, strict=True):
            self._found += coco_results(found, image_id, self._category_ids, masks=self._masks)

    @property
    def _category_ids(self) -> list[int]:
        return [category["id"] for category in self._ground_truth["categories"]]

    def compute(self) -> dict[str, Any]:
        """See `iformer.training.records.results.DetectionEvaluation`: in percent."""
        found = [result for share in all_gather(self._found) for result in share]
        # detections of equal score count in their order, which must not depend on the number of processes
        self.results = found = sorted(found, key=lambda result: int(result["image_id"]))
        boxes = [{k: v for k, v in result.items() if k != "segmentation"} for result in found]
        metrics = self._average_precision("box", "bbox", boxes)
        if self._masks:
            # without boxes: the area that tells small from large is then the mask's
            masks = [{k: v for k, v in result.items() if k != "bbox"} for result in found]
            metrics |= self._average_precision("mask", "segm", masks)
        of_classes = {name: metrics.pop(name) for name in list(metrics) if isinstance(metrics[name], list)}
        per_class: dict[str, dict[str, Any]] = {}
        for label, category in enumerate(self._ground_truth["categories"]):
            scores = {name.removeprefix(_OF_CLASSES): values[label] for name, values in of_classes.items()}
            count = sum(
                annotation["category_id"] == category["id"] and not annotation["iscrowd"]
                for annotation in self._ground_truth["annotations"]
            )
            per_class[category["name"]] = {**scores, "support": count}
        return {**metrics, "images": len(self._ground_truth["images"]), "per_class": per_class}

    def _average_precision(self, prefix: str, kind: str, results: list[dict[str, Any]]) -> dict[str, Any]:
        """AP and its parts, and under `_OF_CLASSES` and their names lists with the value of each class."""
        quiet = logging.getLogger(__name__).debug
        truth = self._library.COCO({**self._ground_truth}, use_deepcopy=True, print_function=quiet)
        evaluator = self._library.COCOeval_faster(truth, truth.loadRes(results), kind, print_function=quiet)
        evaluator.evaluate()
        evaluator.accumulate()
        # thresholds of overlap x recalls x classes x areas x most detections of an image
        precision_TRKAM = np.asarray(evaluator.eval["precision"])
        overall_TRK = precision_TRKAM[:, :, :, 0, -1]
        metrics: dict[str, Any] = {
            f"{prefix}_ap": _percent(overall_TRK) or 0.0,
            f"{prefix}_ap50": _percent(overall_TRK[0]) or 0.0,
            f"{prefix}_ap75": _percent(overall_TRK[5]) or 0.0,
        }
        for name, area in _AREAS.items():
            metrics[f"{prefix}_ap_{name}"] = _percent(precision_TRKAM[:, :, :, area, -1])
        classes = range(overall_TRK.shape[2])
        metrics[f"{_OF_CLASSES}{prefix}_ap"] = [_percent(overall_TRK[:, :, label]) for label in classes]
        metrics[f"{_OF_CLASSES}{prefix}_ap50"] = [_percent(overall_TRK[0, :, label]) for label in classes]
        return metrics


def coco_results(
    found: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int], *, masks: bool
) -> list[dict[str, Any]]:
    """One image's detections (see `Detector.forward`) as COCO's results, the best score first."""
    boxes_N4 = found["boxes"].float().cpu()
    widths_N4 = torch.cat([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], 1)
    results = [
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
        operations = require("faster_coco_eval", extra="detect").mask
        for result, mask_1HW in zip(results, found["masks"], strict=True):
            mask_HW = (mask_1HW[0] > 0.5).to(torch.uint8).cpu().numpy()
            run_lengths = operations.encode(np.asfortranarray(mask_HW))
            counts = run_lengths["counts"]
            result["segmentation"] = {
                "size": list(mask_HW.shape),
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            }
    return results


def _percent(precision: np.ndarray) -> float | None:
    """The mean of what is known (-1 where there is nothing to find) in percent; None where nothing is."""
    known = precision[precision > -1]
    return round(100 * float(known.mean()), 4) if known.size else None
