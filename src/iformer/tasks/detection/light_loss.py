"""The loss of the light detector, and the assignment of its points to objects.

Task-aligned assignment (TOOD, Feng et al. 2021, arXiv 2108.07755, section 3.2): the alignment of a point with an
object is `score ** ALPHA * iou ** BETA`. The one-to-many head takes the best `topk` points of each object, the
one-to-one head the best one, by the same measure (consistent dual assignment; YOLOv10, Wang et al. 2024, arXiv
2405.14458, section 3.1).

With fixed matching, the one-to-many head learns as in SSD (Liu et al. 2016, arXiv 1512.02325, section 2.2), with
points in place of default boxes: those near an object's centre, on the levels that fit its size.

Shape letters: B batch, A points, K classes, N objects of an image, P points that learn an object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou, complete_box_iou_loss

from iformer.models.light_detector import RawDetections, TrainingOutputs

ALPHA, BETA = 0.5, 6.0
"""Exponents of the score and of the IoU in the alignment."""
TOPK = 10
"""Largest number of points that learn one object in the one-to-many head."""
BOX_WEIGHT, CLASS_WEIGHT = 2.0, 1.0
"""Weights of the box loss and of the class loss of each head."""
FOCUS = 2.0
"""Exponent of |quality - score| in the class loss; see `head_loss`."""
NAME_WEIGHT = 0.05
"""Weight of a point of quality 0 in the loss of the classes of a head with objectness; see `class_loss`."""
CENTRE = 0.25
"""Fixed matching: a point learns an object whose centre is nearer than this share of the object's sides."""
LARGEST_CELLS, OVERLAP = 8.0, 1.25
"""Fixed matching: largest size (root of the area) of an object on a level, in strides, and the factor by which the
sizes of neighbouring levels overlap. The finest level has all smaller objects, the coarsest all larger ones."""
NEGATIVES = 3
"""Fixed matching: number of points without an object that count in the loss, for each point with an object."""
SMALLEST_SIDE = 0.01
"""Smallest side, in pixels, of a predicted box in the loss."""
SEMANTIC_WEIGHT = 1.0
"""Weight of the semantic loss."""
BACKGROUND_WEIGHT = 0.2
"""Weight of a point without an object in the semantic loss; the other points have weight 1."""
ELLIPSE = 0.9
"""Share of the area of the ellipse inscribed in an object's box: points inside this part count as the object. The
corners of a box mostly show something else."""


@dataclass(frozen=True)
class Assignment:
    """The targets of every point of a batch."""

    learns: Tensor
    """bool B x A: whether a point learns an object."""
    objects: Tensor
    """int64 B x A: the index of the object that the point learns; 0 where `learns` is False."""
    quality: Tensor
    """float B x A: the target score of the point, from 0 to 1; 0 where `learns` is False."""


@dataclass(frozen=True)
class PaddedTargets:
    """The objects of a batch, padded to N objects per image, so that no step has to wait for the device."""

    boxes: Tensor
    """float B x N x 4: left, top, right and bottom of the objects, in pixels of the input."""
    labels: Tensor
    """int64 B x N: classes of the objects; 0 for padding."""
    present: Tensor
    """bool B x N: True for an object, False for padding."""

    @classmethod
    def stack(cls, targets: Sequence[Mapping[str, Tensor]]) -> PaddedTargets:
        """Stack `boxes` (N x 4) and `labels` (N) of each image; N may be 0."""
        labels = pad_sequence([target["labels"] for target in targets], batch_first=True, padding_value=-1)
        boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
        if not labels.shape[1]:  # no object in the whole batch
            labels, boxes = labels.new_full((len(targets), 1), -1), boxes.new_zeros(len(targets), 1, 4)
        return cls(boxes, labels.clamp(min=0), labels >= 0)


@torch.no_grad()
def assign(
    scores_BAK: Tensor, boxes_BA4: Tensor, points_2A: Tensor, targets: PaddedTargets, *, topk: int
) -> Assignment:
    """Assign points to the objects of each image, as the module describes.

    Args:
        scores_BAK: scores from 0 to 1.
        boxes_BA4: predicted boxes in pixels.
        points_2A: x and y of the points in pixels.
        targets: the objects.
        topk: largest number of points that learn one object.
    """
    present_BN1 = targets.present[..., None]
    iou_BNA = box_iou(targets.boxes, boxes_BA4)
    wanted_BNA = scores_BAK.transpose(1, 2).gather(
        1, targets.labels[..., None].expand(-1, -1, scores_BAK.shape[1])
    )
    alignment_BNA = wanted_BNA**ALPHA * iou_BNA**BETA
    x, y = points_2A
    left, top, right, bottom = targets.boxes[..., None].unbind(2)
    inside_BNA = (x > left) & (y > top) & (x < right) & (y < bottom)
    centres_BN2 = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    distance_BNA = torch.cdist(centres_BN2, points_2A.T.expand(len(centres_BN2), -1, -1))
    # an object that is smaller than a cell may have no point inside: it takes the nearest one
    inside_BNA.scatter_(2, distance_BNA.argmin(2, keepdim=True), True)
    inside_BNA &= present_BN1
    # nearer points first where the boxes do not overlap yet: at the start of a training all products are 0
    ranking_BNA = torch.where(inside_BNA, alignment_BNA + 1e-12 / (1 + distance_BNA), -1.0)
    best_BN = ranking_BNA.topk(min(topk, ranking_BNA.shape[2]), dim=2).indices
    chosen_BNA = torch.zeros_like(inside_BNA).scatter_(2, best_BN, True) & inside_BNA
    # a point that several objects chose learns the object that its box overlaps most
    objects_BA = torch.where(chosen_BNA, iou_BNA, -1.0).argmax(1)
    learns_BA = chosen_BNA.any(1)
    chosen_BNA &= torch.zeros_like(chosen_BNA).scatter_(1, objects_BA[:, None], True)
    alignment_BNA = alignment_BNA * chosen_BNA
    largest_BN1 = alignment_BNA.amax(2, keepdim=True).clamp(min=1e-12)
    best_iou_BN1 = (iou_BNA * chosen_BNA).amax(2, keepdim=True)
    quality_BA = (alignment_BNA / largest_BN1 * best_iou_BN1).sum(1)
    return Assignment(learns_BA, torch.where(learns_BA, objects_BA, 0), quality_BA)


@torch.no_grad()
def assign_fixed(points_2A: Tensor, strides_A: Tensor, targets: PaddedTargets) -> Assignment:
    """Assign points to the objects of each image by positions and sizes only; all qualities are 1.

    An object has at least one point. A point of several objects learns the smallest.

    Args:
        points_2A: x and y of the points in pixels.
        strides_A: stride of each point's level.
        targets: the objects.
    """
    centres_BN2 = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    sides_BN2 = targets.boxes[..., 2:] - targets.boxes[..., :2]
    size_BN1 = sides_BN2.clamp(min=0).prod(2, keepdim=True).sqrt()
    smallest_A = strides_A * (LARGEST_CELLS / 2 / OVERLAP)
    largest_A = strides_A * (LARGEST_CELLS * OVERLAP)
    smallest_A = torch.where(strides_A == strides_A.min(), -1.0, smallest_A)
    largest_A = torch.where(strides_A == strides_A.max(), torch.inf, largest_A)
    fits_BNA = (size_BN1 > smallest_A) & (size_BN1 <= largest_A)
    x_BNA, y_BNA = ((points_2A[i] - centres_BN2[..., i : i + 1]).abs() for i in range(2))
    chosen_BNA = fits_BNA & (x_BNA < CENTRE * sides_BN2[..., :1]) & (y_BNA < CENTRE * sides_BN2[..., 1:])
    distance_BNA = torch.where(fits_BNA, x_BNA**2 + y_BNA**2, torch.inf)
    chosen_BNA.scatter_(2, distance_BNA.argmin(2, keepdim=True), True)
    chosen_BNA &= targets.present[..., None]
    learns_BA = chosen_BNA.any(1)
    objects_BA = torch.where(chosen_BNA, size_BN1, torch.inf).argmin(1)
    return Assignment(learns_BA, torch.where(learns_BA, objects_BA, 0), learns_BA.float())


def head_loss(
    raw: RawDetections,
    points_2A: Tensor,
    targets: PaddedTargets,
    *,
    topk: int,
    fixed_strides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the losses of one head over a batch: `classes` and `boxes`, scalars.

    Points are assigned by `assign_fixed` if `fixed_strides` are given, else by `assign` with `topk`. See
    `class_loss` and `background_loss`. The box loss is complete IoU weighted by quality, divided by the sum of the
    qualities, at least 1.
    """
    raw = raw.float()  # before the scores: in half precision, scores of many points would be equal
    boxes_BA4 = _with_area(raw.boxes)
    if fixed_strides is not None:
        found = assign_fixed(points_2A, fixed_strides, targets)
    else:
        found = assign(raw.scores.detach(), boxes_BA4.detach(), points_2A, targets, topk=topk)
    wanted_BA4 = targets.boxes.gather(1, found.objects[..., None].expand(-1, -1, 4))
    overlap_P = complete_box_iou_loss(boxes_BA4[found.learns], wanted_BA4[found.learns])
    return {
        "classes": (background_loss if raw.with_background else class_loss)(raw, found, targets),
        "boxes": (overlap_P * found.quality[found.learns]).sum() / found.quality.sum().clamp(min=1.0),
    }


def class_loss(raw: RawDetections, found: Assignment, targets: PaddedTargets) -> Tensor:
    """Return the loss of the scores over a batch.

    Without objectness it is binary cross entropy of each class against the assignment's quality, times
    |quality - score| ** FOCUS (TOOD, equations 4 and 5). Without that factor, the thousands of points without an
    object outweigh the few points with an object: after four epochs, no score of the one-to-one head was above
    0.02.

    With objectness it is plain binary cross entropy of the objectness, plus cross entropy of the classes: its mean
    over the points that learn an object, weighted by quality + `NAME_WEIGHT`. The binary cross entropies are
    divided by the sum of the qualities, at least 1.
    """
    logits_BAK = raw.logits
    labels_BA = targets.labels.gather(1, found.objects)
    total = found.quality.sum().clamp(min=1.0)
    if raw.objectness is not None:
        object_BA = raw.objectness.squeeze(2)
        entropy = F.binary_cross_entropy_with_logits(object_BA, found.quality, reduction="sum")
        names_P = F.cross_entropy(logits_BAK[found.learns], labels_BA[found.learns], reduction="none")
        weight_P = found.quality[found.learns] + NAME_WEIGHT
        return entropy / total + (names_P * weight_P).sum() / weight_P.sum().clamp(min=1.0)
    goal_BAK = torch.zeros_like(logits_BAK).scatter_(2, labels_BA[..., None], found.quality[..., None])
    entropy_BAK = F.binary_cross_entropy_with_logits(logits_BAK, goal_BAK, reduction="none")
    return ((goal_BAK - logits_BAK.sigmoid()).abs() ** FOCUS * entropy_BAK).sum() / total


def background_loss(raw: RawDetections, found: Assignment, targets: PaddedTargets) -> Tensor:
    """Return the loss of one softmax over the classes and the background, over a batch.

    It is the sum of the cross entropies of the points that learn an object and, in each image, of `NEGATIVES`
    times as many other points, those with the largest cross entropy. The sum is divided by the number of points
    that learn an object (SSD, section 2.2).
    """
    logits_BAK = raw.background_logits
    labels_BA = targets.labels.gather(1, found.objects)
    labels_BA = torch.where(found.learns, labels_BA, logits_BAK.shape[2] - 1)
    entropy_BA = F.cross_entropy(logits_BAK.transpose(1, 2), labels_BA, reduction="none")
    hardest_BA = entropy_BA.detach().masked_fill(found.learns, -torch.inf).argsort(1, descending=True)
    place_BA = hardest_BA.argsort(1)  # of each point among the hardest
    positive_B1 = found.learns.sum(1, keepdim=True)
    counted_BA = found.learns | (place_BA < NEGATIVES * positive_B1)
    return (entropy_BA * counted_BA).sum() / positive_B1.sum().clamp(min=1)


def _with_area(boxes_BA4: Tensor) -> Tensor:
    """Return boxes with sides of at least `SMALLEST_SIDE`; the IoU of an empty box would be 0 / 0."""
    corners_BA2 = boxes_BA4[..., :2]
    return torch.cat([corners_BA2, torch.maximum(boxes_BA4[..., 2:], corners_BA2 + SMALLEST_SIDE)], 2)


def semantic_loss(maps: Sequence[Tensor], points_2A: Tensor, targets: PaddedTargets) -> Tensor:
    """Return the cross entropy of the points' classes: the mean of each level, summed over the levels.

    The class of a point is the class of the smallest object whose ellipse contains the point, else the background.
    Masks are not needed.

    Args:
        maps: `TrainingOutputs.semantic`.
        points_2A: the points of the detector, level by level.
        targets: the objects.
    """
    centres_2BN1 = ((targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2).movedim(2, 0)[..., None]
    radii_2BN1 = ((targets.boxes[..., 2:] - targets.boxes[..., :2]) / 2).clamp(min=1e-3).movedim(2, 0)[..., None]
    area_BN1 = radii_2BN1.prod(0)
    losses, start = [], 0
    for logits_BKHW in maps:
        count, background = logits_BKHW[0, 0].numel(), logits_BKHW.shape[1] - 1
        level_2A = points_2A[:, start : start + count]
        start += count
        distance_BNA = (((level_2A[:, None, None] - centres_2BN1) / radii_2BN1) ** 2).sum(0)
        inside_BNA = (distance_BNA < ELLIPSE) & targets.present[..., None]
        smallest_BA = torch.where(inside_BNA, area_BN1, torch.inf).argmin(1)
        goal_BA = torch.where(inside_BNA.any(1), targets.labels.gather(1, smallest_BA), background)
        weight_K = logits_BKHW.new_ones(background + 1, dtype=torch.float32)
        weight_K[-1] = BACKGROUND_WEIGHT
        losses.append(F.cross_entropy(logits_BKHW.float().flatten(2), goal_BA, weight=weight_K))
    return torch.stack(losses).sum()


def light_loss(
    outputs: TrainingOutputs,
    points_2A: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    *,
    fixed_strides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return `loss`, the weighted sum of the losses of a `LightDetector`, and each of these losses, detached.

    Args:
        outputs: the result of `LightDetector.forward` in training mode.
        points_2A: the result of `LightDetector.points`.
        targets: for each image `boxes` (float N x 4, pixels of the input) and `labels` (int64 N); N may be 0.
        fixed_strides: the result of `LightDetector.point_strides`, for fixed matching in the one-to-many head.
            None: aligned matching.
    """
    padded = PaddedTargets.stack(targets)
    many = head_loss(outputs.one_to_many, points_2A, padded, topk=TOPK, fixed_strides=fixed_strides)
    one = head_loss(outputs.one_to_one, points_2A, padded, topk=1)
    loss = torch.stack([CLASS_WEIGHT * part["classes"] + BOX_WEIGHT * part["boxes"] for part in (many, one)]).sum()
    parts = {
        f"{head}_{name}": value.detach()
        for head, part in (("many", many), ("one", one))
        for name, value in part.items()
    }
    if outputs.semantic:
        semantic = semantic_loss(outputs.semantic, points_2A, padded)
        loss = loss + SEMANTIC_WEIGHT * semantic
        parts["semantic"] = semantic.detach()
    return {"loss": loss, **parts}
