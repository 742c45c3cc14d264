"""Selection of detections from the boxes and scores of every point, shared by networks and artifacts.

Shape letters: B batch, A points, K classes, N detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from iformer.config.checking import Config, Range, ShareBelowOne
from iformer.models.letterbox import letterbox

_CANDIDATES = 10
"""Number of candidates for non-maximum suppression, as a multiple of `SelectionRule.detections`."""


@dataclass(frozen=True, kw_only=True)
class SelectionRule(Config):
    """Rule by which (point, class) pairs of an image become detections.

    Boxes without area are dropped: they lie in the padding of the letterbox, and were clipped to the image.
    """

    score_threshold: ShareBelowOne
    """Only pairs with a score above this one are kept."""
    detections: Annotated[int, Range(1, 100_000)]
    """Largest number of detections per image."""
    nms_iou: Annotated[float, Range(0, 1, above=True)] | None = None
    """Overlap above which non-maximum suppression, class by class, drops the box with the lower score. None: there
    is no suppression."""

    def select(self, boxes_A4: Tensor, scores_AK: Tensor, *, min_score: float = 0.0) -> dict[str, Tensor]:
        """Return `boxes` (N x 4), `scores` (N, descending) and `labels` (int64 N) of one image.

        See `select_points` for the arguments.
        """
        found = self.select_points(boxes_A4, scores_AK, min_score=min_score)
        return {name: value for name, value in found.items() if name != "points"}

    def select_points(self, boxes_A4: Tensor, scores_AK: Tensor, *, min_score: float = 0.0) -> dict[str, Tensor]:
        """Return the dict of `select` with one more entry: `points`, int64 N, the point of each detection.

        Args:
            boxes_A4: left, top, right, bottom of every point.
            scores_AK: scores of every point, from 0 to 1.
            min_score: detections with a lower score are dropped too.
        """
        has_area_A = (boxes_A4[:, 2:] > boxes_A4[:, :2]).all(1)
        flat = scores_AK.where(has_area_A[:, None], -1.0).flatten()
        count = self.detections * (_CANDIDATES if self.nms_iou is not None else 1)
        scores, order = flat.topk(min(flat.numel(), count))
        keep = (scores > self.score_threshold) & (scores >= min_score)
        scores, order = scores[keep], order[keep]
        points, labels = order // scores_AK.shape[1], order % scores_AK.shape[1]
        boxes = boxes_A4[points]
        if self.nms_iou is not None:
            kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.detections]
            boxes, scores, labels, points = boxes[kept], scores[kept], labels[kept], points[kept]
        return {"boxes": boxes, "scores": scores, "labels": labels, "points": points}


@torch.inference_mode()
def detect_letterboxed(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Sequence[Tensor],
    size: tuple[int, int],
    fill: tuple[int, int, int],
    rule: SelectionRule,
    *,
    min_score: float = 0.0,
) -> list[dict[str, Tensor]]:
    """Letterbox images of any sizes, run a network on them, and return the detected objects.

    Args:
        forward: maps letterboxed images, uint8 B x 3 x H x W, to boxes, B x A x 4 in pixels of the letterbox, and
            scores, B x A x K.
        images: uint8 3 x h x w, RGB, each of its own size.
        size: height and width (H, W) of the letterbox.
        fill: colour of the letterbox (red, green, blue).
        rule: which detections are kept.
        min_score: detections with a lower score are dropped too.

    Returns:
        For each image `boxes` (N x 4: left, top, right, bottom in pixels of the image), `scores` (N, descending)
        and `labels` (int64 N, from 0).
    """
    boxed = [letterbox(image, size, fill=fill) for image in images]
    boxes, scores = forward(torch.stack([item.image for item in boxed]))
    return [
        rule.select(item.restore(image_boxes.float()), image_scores.float(), min_score=min_score)
        for item, image_boxes, image_scores in zip(boxed, boxes, scores, strict=True)
    ]
