"""The loss of the light detector, and which of its points learn which object.

Task-aligned assignment (TOOD, Feng et al. 2021, arXiv 2108.07755, section 3.2): a point is as good for an object
as `score ** ALPHA * iou ** BETA`. The one-to-many head takes the best `topk` points of each object, the one-to-one
head the best one, by the same measure (consistent dual assignment; YOLOv10, Wang et al. 2024, arXiv 2405.14458,
section 3.1).

Shape letters: B batch, A points, K classes, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, complete_box_iou_loss

from iformer.models.light_detector import RawDetections

ALPHA, BETA = 0.5, 6.0
TOPK = 10
BOX_WEIGHT, CLASS_WEIGHT = 7.5, 1.0


@dataclass(frozen=True)
class Assignment:
    """What the points of one image learn."""

    points: Tensor
    """int64 P: the points that learn an object."""
    objects: Tensor
    """int64 P: the object that each of them learns."""
    quality: Tensor
    """float P: the target score of each of them, from 0 to 1."""


@torch.no_grad()
def assign(
    scores_AK: Tensor, boxes_A4: Tensor, points_2A: Tensor, target: Mapping[str, Tensor], *, topk: int
) -> Assignment:
    """Give the objects of one image their points.

    Args:
        scores_AK: scores from 0 to 1.
        boxes_A4: predicted boxes in pixels.
        points_2A: x and y of the points in pixels.
        target: `boxes` (N x 4, pixels) and `labels` (int64 N).
        topk: the largest number of points of an object.
    """
    boxes_N4, labels_N = target["boxes"], target["labels"]
    if not len(labels_N):
        none = torch.zeros(0, dtype=torch.int64, device=boxes_A4.device)
        return Assignment(none, none, boxes_A4.new_zeros(0))
    iou_NA = box_iou(boxes_N4, boxes_A4)
    alignment_NA = scores_AK[:, labels_N].T ** ALPHA * iou_NA**BETA
    x, y = points_2A
    inside_NA = (x > boxes_N4[:, :1]) & (y > boxes_N4[:, 1:2]) & (x < boxes_N4[:, 2:3]) & (y < boxes_N4[:, 3:4])
    centres_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    distance_NA = torch.cdist(centres_N2, points_2A.T)
    # an object that is smaller than a cell may have no point inside: it takes the nearest one
    nearest_N = distance_NA.argmin(1)
    inside_NA[torch.arange(len(labels_N), device=x.device), nearest_N] = True
    # nearer points first where the boxes do not overlap yet: at the start of a training all products are 0
    ranking_NA = torch.where(inside_NA, alignment_NA + 1e-12 / (1 + distance_NA), -1.0)
    best_N = ranking_NA.topk(min(topk, ranking_NA.shape[1]), dim=1).indices
    chosen_NA = torch.zeros_like(inside_NA).scatter_(1, best_N, True) & inside_NA
    # a point that several objects chose learns the one it overlaps most
    contested_A = chosen_NA.sum(0) > 1
    winner_A = torch.where(chosen_NA, iou_NA, -1.0).argmax(0)
    mine_NA = F.one_hot(winner_A, len(labels_N)).T.bool()
    chosen_NA &= mine_NA | ~contested_A
    objects, points = chosen_NA.nonzero(as_tuple=True)
    alignment_NA = alignment_NA * chosen_NA
    largest_N = alignment_NA.amax(1).clamp(min=1e-12)
    best_iou_N = (iou_NA * chosen_NA).amax(1)
    quality = alignment_NA[objects, points] / largest_N[objects] * best_iou_N[objects]
    return Assignment(points, objects, quality)


def head_loss(
    raw: RawDetections, points_2A: Tensor, targets: Sequence[Mapping[str, Tensor]], *, topk: int
) -> dict[str, Tensor]:
    """Losses of one head over a batch: `classes` and `boxes`, scalars.

    The class loss is binary cross entropy against the assignment's quality (TOOD, equation 5, without the focal
    factor), the box loss complete IoU weighted by quality. Both are divided by the sum of the qualities.
    """
    logits_BAK, boxes_BA4 = raw.logits.float(), raw.boxes.float()
    goal_BAK = torch.zeros_like(logits_BAK)
    predicted, wanted, weights = [], [], []
    for index, target in enumerate(targets):
        found = assign(
            logits_BAK[index].detach().sigmoid(), boxes_BA4[index].detach(), points_2A, target, topk=topk
        )
        goal_BAK[index, found.points, target["labels"][found.objects]] = found.quality
        predicted.append(boxes_BA4[index, found.points])
        wanted.append(target["boxes"][found.objects])
        weights.append(found.quality)
    weight_P = torch.cat(weights)
    total = weight_P.sum().clamp(min=1.0)
    overlap_P = complete_box_iou_loss(torch.cat(predicted), torch.cat(wanted))
    return {
        "classes": F.binary_cross_entropy_with_logits(logits_BAK, goal_BAK, reduction="sum") / total,
        "boxes": (overlap_P * weight_P).sum() / total,
    }


def light_loss(
    outputs: tuple[RawDetections, RawDetections], points_2A: Tensor, targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The loss of both heads of a `LightDetector`, and each part of it, detached.

    Args:
        outputs: of `LightDetector.forward` in training mode.
        points_2A: of `LightDetector.points`.
        targets: for each image `boxes` (float N x 4, pixels of the input) and `labels` (int64 N); N may be 0.
    """
    many = head_loss(outputs[0], points_2A, targets, topk=TOPK)
    one = head_loss(outputs[1], points_2A, targets, topk=1)
    loss = sum(CLASS_WEIGHT * part["classes"] + BOX_WEIGHT * part["boxes"] for part in (many, one))
    assert isinstance(loss, Tensor)
    parts = {
        f"{head}_{name}": value.detach()
        for head, part in (("many", many), ("one", one))
        for name, value in part.items()
    }
    return {"loss": loss, **parts}
