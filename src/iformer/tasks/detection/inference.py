"""Detect objects with a Mask R-CNN, a Faster R-CNN, a light detector or an artifact of one of them.

Shape letters: B images, A boxes of an image, K classes, M the side of a mask, N detections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from iformer.config.detector import DetectorConfig
from iformer.data.conversion import ValueRange
from iformer.deploy.artifact import ArtifactInfo
from iformer.deploy.exportable import Agreement, Forward, Outputs
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import ConfigError, UserError
from iformer.models.detections import SelectionRule, detect_letterboxed
from iformer.models.detector import Detector, PastedMasks
from iformer.models.finite import check_finite
from iformer.models.letterbox import letterbox
from iformer.models.light_detector import LightDetector
from iformer.tasks.tiles import Tile, Tiling, with_notes

BOXES, SCORES, MASKS = "boxes", "scores", "masks"
"""Names of an artifact's outputs. Boxes: B x A x 4 (left, top, right, bottom in pixels of the input). Scores:
B x A x K, 0 to 1. Masks, only of a Mask R-CNN: B x A x M x M, 0 to 1, inside the boxes."""

_MERGE_IOU = 0.5
"""IoU above which two detections of one class are the same object."""
_MERGE_INSIDE = 0.7
"""Share of a cut box inside another box above which the two are the same object."""
_EDGE = 2.0
"""Largest distance of a cut box from the edge of its tile, in pixels."""


class ObjectDetector(ABC):
    """Base class: a detector that finds objects on images of any size."""

    name: str
    class_names: tuple[str, ...]
    """One name per class; empty if unknown."""
    num_classes: int
    value_range: ValueRange | None
    """Values of black and white in images of more than 8 bits; see `iformer.data.images.read_image`."""
    has_masks = False
    detections: int
    """Maximum number of detections per image."""
    require_finite = False
    """Whether `detect` raises a DataError if the network's outputs are NaN or infinite."""

    @abstractmethod
    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Return the objects on images of any sizes, uint8 3 x h x w, in the format of `Detector.detect`."""


@dataclass(frozen=True, kw_only=True)
class DetectionLimits:
    """Settings that replace those in the config of a detector."""

    detections: int | None = None
    """Largest number of detections of an image. None: the detector's own."""
    nms_iou: float | None = None
    """Overlap above which the box with the lower score is dropped, class by class. None: the detector's own."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: a value is out of its range.
        """
        if self.detections is not None and self.detections < 1:
            raise UserError(f"--max-detections is {self.detections}; expected 1 or more")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise UserError(f"--iou is {self.nms_iou:g}; expected an overlap above 0, up to 1")

    def apply(self, rule: SelectionRule) -> SelectionRule:
        """Return a copy of a rule with these limits.

        Raises:
            UserError: `nms_iou` is set, and the rule has no non-maximum suppression outside the network.
        """
        if self.detections is not None:
            rule = replace(rule, detections=self.detections)
        if self.nms_iou is None:
            return rule
        if rule.nms_iou is None:
            raise UserError(f"--iou is {self.nms_iou:g}; this detector suppresses no boxes outside the network")
        return replace(rule, nms_iou=self.nms_iou)


NO_LIMITS = DetectionLimits()


class NetworkDetector(ObjectDetector):
    """A network in eval mode as an `ObjectDetector`."""

    def __init__(self, network: Detector | LightDetector, limits: DetectionLimits = NO_LIMITS) -> None:
        config = network.config
        self._network, self._limits = network, limits
        self._rule = limits.apply(network.rule) if isinstance(network, LightDetector) else None
        self.name, self.num_classes = config.backbone.name, config.num_classes
        self.class_names, self.value_range = network.metadata.class_names, config.value_range
        self.has_masks = isinstance(config, DetectorConfig) and config.masks
        self.detections = config.detections if limits.detections is None else limits.detections

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        common: dict[str, Any] = {"min_score": min_score, "require_finite": self.require_finite}
        if isinstance(self._network, LightDetector):
            return self._network.detect(images, rule=self._rule, **common)
        limits = self._limits
        return self._network.detect(images, detections=limits.detections, nms_iou=limits.nms_iou, **common)


class LetterboxDetector(ObjectDetector):
    """`ObjectDetector` that wraps a function from letterboxed images to boxes and scores, such as an artifact."""

    def __init__(
        self,
        forward: Forward,
        rule: SelectionRule,
        *,
        size: tuple[int, int],
        fill: tuple[int, int, int],
        num_classes: int,
        name: str = "",
        class_names: tuple[str, ...] = (),
        value_range: ValueRange | None = None,
        has_masks: bool = False,
    ) -> None:
        """Wrap `forward`, which maps uint8 images of `size` to `BOXES`, `SCORES` and, if any, `MASKS`."""
        self.has_masks = has_masks
        self._forward, self._rule, self._size, self._fill = forward, rule, size, fill
        self.detections = rule.detections
        self.name, self.num_classes, self.class_names = name, num_classes, class_names
        self.value_range = value_range

    @classmethod
    def of_artifact(cls, runner: ArtifactRunner, limits: DetectionLimits = NO_LIMITS) -> LetterboxDetector:
        """Wrap an artifact as its record describes it.

        Raises:
            UserError: the record does not describe a detector, or `limits` do not fit it.
        """
        info = runner.info
        expected = (*info.shapes.get(BOXES, ())[:1], info.num_classes)
        try:
            rule = SelectionRule.from_plain(info.postprocess or {})
        except ConfigError as error:
            raise UserError(f"{runner.path}: its record has no rule for detections: {error}") from None
        if info.preprocessing.letterbox is None or info.shapes.get(SCORES) != expected:
            raise UserError(f"{runner.path}: its record does not describe a detector's outputs")
        return cls(
            runner,
            limits.apply(rule),
            size=info.preprocessing.size,
            fill=info.preprocessing.letterbox,
            num_classes=info.num_classes,
            name=info.network,
            class_names=info.class_names,
            value_range=info.preprocessing.value_range,
            has_masks=MASKS in info.shapes,
        )

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        if self.has_masks:
            return [self._detect_masks(image, min_score) for image in images]

        def forward(letterboxed: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self._outputs(letterboxed)
            return outputs[BOXES], outputs[SCORES]

        return detect_letterboxed(forward, images, self._size, self._fill, self._rule, min_score=min_score)

    @torch.inference_mode()
    def _detect_masks(self, image: Tensor, min_score: float) -> dict[str, Any]:
        boxed = letterbox(image, self._size, fill=self._fill)
        outputs = self._outputs(boxed.image[None])
        boxes = boxed.restore(outputs[BOXES][0].float())
        found: dict[str, Any] = dict(
            self._rule.select_points(boxes, outputs[SCORES][0].float(), min_score=min_score)
        )
        maps = outputs[MASKS][0][found.pop("points")][:, None]
        return {**found, "masks": PastedMasks(maps, found["boxes"], (image.shape[1], image.shape[2]))}

    def _outputs(self, letterboxed: Tensor) -> Outputs:
        outputs = self._forward(letterboxed)
        if self.require_finite:
            check_finite(*outputs.values())
        return outputs


class TiledDetector(ObjectDetector):
    """A detector that is applied to tiles of an image and to the whole image, for objects larger than a tile.

    Detections of one object in several tiles are merged. Of two detections of one class, the weaker one is dropped
    if their IoU is above 0.5, or if a tile's edge cuts the weaker box and more than 0.7 of this box lies inside
    the other box. A cut box is weaker than a whole one; otherwise the box with the lower score is weaker.

    The combination of tiles and the whole image is the idea of slicing-aided inference (Akyon et al. 2022,
    https://arxiv.org/abs/2202.06934).
    """

    def __init__(self, detector: ObjectDetector, tiling: Tiling) -> None:
        """Wrap a detector to apply it to the tiles of `tiling`."""
        self._detector, self._tiling = detector, tiling
        self.name, self.class_names, self.num_classes = detector.name, detector.class_names, detector.num_classes
        self.value_range, self.has_masks, self.detections = (
            detector.value_range,
            detector.has_masks,
            detector.detections,
        )

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Return the objects on images; each tile and the whole image contribute at most `detections` objects."""
        return [self._detect(image, min_score) for image in images]

    def _detect(self, image: Tensor, min_score: float) -> dict[str, Any]:
        height, width = image.shape[1:]
        whole = self._detector.detect([image], min_score=min_score)[0]
        tiles = self._tiling.tiles(width, height)
        if len(tiles) == 1:
            return whole
        parts, cut = [whole], [torch.zeros(len(whole["scores"]), dtype=torch.bool)]
        for tile in with_notes(tiles):
            pixels = image[:, tile.top : tile.bottom, tile.left : tile.right]
            found = self._detector.detect([pixels], min_score=min_score)[0]
            parts.append(_moved(found, tile, (height, width)))
            cut.append(_is_cut(found["boxes"].cpu(), tile, (height, width)))
        return _merged(parts, torch.cat(cut), (height, width))


Subject = Detector | LightDetector | ArtifactRunner | ObjectDetector
"""A detector that can be evaluated: a network in eval mode, an artifact, or the result of `object_detector`."""


def object_detector(subject: Subject, limits: DetectionLimits = NO_LIMITS) -> ObjectDetector:
    """Return a network in eval mode or an artifact as an `ObjectDetector`; return an `ObjectDetector` unchanged.

    Raises:
        UserError: the artifact's record does not describe a detector, or `limits` do not fit it.
    """
    if isinstance(subject, ObjectDetector):
        return subject
    if isinstance(subject, ArtifactRunner):
        return LetterboxDetector.of_artifact(subject, limits)
    return NetworkDetector(subject, limits)


def postprocessor(info: ArtifactInfo) -> Callable[[Outputs], Any]:
    """Return the postprocessing to benchmark: from an artifact's outputs to detections at the input's size."""
    rule = SelectionRule.from_plain(info.postprocess or {})

    def detections(outputs: Outputs) -> list[dict[str, Tensor]]:
        return [rule.select(*image) for image in zip(outputs[BOXES], outputs[SCORES], strict=True)]

    return detections


def merge(boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, cut_N: Tensor) -> Tensor:
    """Return the indices of the detections to keep, highest score first; `TiledDetector` describes the rule.

    Args:
        boxes_N4: left, top, right, bottom.
        scores_N: 0 to 1.
        labels_N: classes.
        cut_N: bool; whether the edge of a tile cuts the box.
    """
    order = sorted(range(len(scores_N)), key=lambda n: (bool(cut_N[n]), -float(scores_N[n])))
    overlap_NN = box_iou(boxes_N4, boxes_N4)
    areas_N = box_area(boxes_N4).clamp(min=1e-6)
    shared_NN = overlap_NN * (areas_N[:, None] + areas_N) / (1 + overlap_NN)
    # [a, b]: b is dropped if a is kept
    drops_NN = (overlap_NN > _MERGE_IOU) | (cut_N & (shared_NN / areas_N > _MERGE_INSIDE))
    drops_NN &= labels_N[:, None] == labels_N
    dropped = torch.zeros(len(scores_N), dtype=torch.bool)
    kept: list[int] = []
    for index in order:
        if not dropped[index]:
            kept.append(index)
            dropped |= drops_NN[index]
    return torch.tensor(sorted(kept, key=lambda n: -float(scores_N[n])), dtype=torch.int64)


def _moved(found: dict[str, Any], tile: Tile, size: tuple[int, int]) -> dict[str, Any]:
    """Return the detections of a tile in pixels of the image."""
    boxes = found["boxes"] + found["boxes"].new_tensor((tile.left, tile.top, tile.left, tile.top))
    moved = {**found, "boxes": boxes}
    if "masks" in found:
        moved["masks"] = PastedMasks(found["masks"].maps, boxes, size)
    return moved


def _is_cut(boxes_N4: Tensor, tile: Tile, size: tuple[int, int]) -> Tensor:
    """Return which boxes (in pixels of the tile) touch an edge of the tile that is not an edge of the image."""
    height, width = size
    left, top, right, bottom = boxes_N4.unbind(1)
    cut = (left <= _EDGE) & (tile.left > 0) | (top <= _EDGE) & (tile.top > 0)
    cut |= (right >= tile.right - tile.left - _EDGE) & (tile.right < width)
    return cut | (bottom >= tile.bottom - tile.top - _EDGE) & (tile.bottom < height)


def _merged(parts: list[dict[str, Any]], cut: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    together = {name: torch.cat([part[name].cpu() for part in parts]) for name in ("boxes", "scores", "labels")}
    kept = merge(together["boxes"].float(), together["scores"].float(), together["labels"], cut)
    result: dict[str, Any] = {name: value[kept] for name, value in together.items()}
    if "masks" in parts[0]:
        maps = torch.cat([part["masks"].maps.cpu() for part in parts])[kept]
        result["masks"] = PastedMasks(maps, result["boxes"], size)
    return result


# ------------------------------------------------------------------------------------------- comparison

_IOU_ERROR = 10
"""Allowed error of boxes and masks, as a multiple of the tolerance: in fp32 (1e-3), an IoU of at least 0.99."""


def detection_agreement(rule: SelectionRule, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
    """Compare the selected detections of each image as sets.

    Every detection on one side must have a counterpart on the other: the same class, nearly the same box, a score
    that differs by `tolerance` at most and, if there are masks, nearly the same mask. Detections that errors of
    `tolerance` may push below the limits of the selection need no counterpart. If the rule suppresses boxes, the
    counterpart is the same point before the suppression, which takes any one of boxes with nearly equal scores.
    """
    both = [
        [_selected(rule, outputs, index, tolerance) for index in range(len(expected[BOXES]))]
        for outputs in (expected, actual)
    ]
    missing = compared = 0
    least_iou, largest_error, mask_error = 1.0, 0.0, 0.0
    for index, (ours, theirs) in enumerate(zip(*both, strict=True)):
        for one, other, outputs in ((ours, theirs, actual), (theirs, ours, expected)):
            clear = {name: value[one["clear"]] for name, value in one.items()}
            if rule.nms_iou is not None:
                other = _at_points(clear, outputs[BOXES][index], outputs[SCORES][index])
            overlap, error, partner = _matched(clear, other, tolerance)
            unmatched = overlap < 1 - _IOU_ERROR * tolerance
            missing += int(unmatched.sum())
            compared += len(overlap)
            if (~unmatched).any():
                least_iou = min(least_iou, float(overlap[~unmatched].min()))
                largest_error = max(largest_error, float(error[~unmatched].max()))
                if MASKS in one:
                    errors = (clear[MASKS] - other[MASKS][partner]).abs()[~unmatched]
                    mask_error = max(mask_error, float(errors.max()))
    failures = []
    if missing:
        failures.append(f"{missing} of {compared} detections have no counterpart of the same class, box and score")
    if mask_error > _IOU_ERROR * tolerance:
        failures.append(f"masks differ by {mask_error:.2g}; {_IOU_ERROR * tolerance:g} is allowed")
    metrics: dict[str, Any] = {
        "compared_detections": compared,
        "unmatched_detections": missing,
        "min_iou": least_iou,
        "max_score_error": largest_error,
    }
    if MASKS in expected:
        metrics["max_mask_error"] = mask_error
    return Agreement(metrics=metrics, max_error=largest_error, failures=tuple(failures))


def _selected(rule: SelectionRule, outputs: Outputs, index: int, tolerance: float) -> dict[str, Tensor]:
    """Return the detections of one image, and some below the limits; `clear` is True for those clearly above."""
    wider = replace(rule, detections=2 * rule.detections, score_threshold=0.0)
    found = wider.select_points(outputs[BOXES][index], outputs[SCORES][index])
    if len(scores := found["scores"]) > rule.detections:
        first_left_out = scores[rule.detections]
    elif len(scores) == outputs[BOXES].shape[1]:  # the network itself selects, and all its rows are detections
        first_left_out = scores[-1]
    else:
        first_left_out = scores.new_zeros(())
    limit = max(rule.score_threshold, float(first_left_out))
    if MASKS in outputs:
        found[MASKS] = outputs[MASKS][index][found["points"]]
    return {**found, "clear": scores > limit + 2 * tolerance}


def _at_points(found: dict[str, Tensor], boxes_A4: Tensor, scores_AK: Tensor) -> dict[str, Tensor]:
    """Return the boxes and scores of an image for the points and labels of `found`."""
    points, labels = found["points"], found["labels"]
    return {"boxes": boxes_A4[points], "scores": scores_AK[points, labels], "labels": labels}


def _matched(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the IoU, score error and index of the best match in `other` for each detection of `one`."""
    if not len(one["scores"]) or not len(other["scores"]):
        count = len(one["scores"])
        return torch.zeros(count), torch.ones(count), torch.zeros(count, dtype=torch.int64)
    error_NM = (one["scores"][:, None] - other["scores"]).abs()
    fits_NM = (one["labels"][:, None] == other["labels"]) & (error_NM <= tolerance)
    overlap_NM = torch.where(fits_NM, box_iou(one["boxes"], other["boxes"]), -1.0)
    best_N, index_N = overlap_NM.max(1)
    return best_N, error_NM.gather(1, index_N[:, None])[:, 0], index_N
