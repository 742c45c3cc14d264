"""Find objects on images and videos: boxes, names, masks, and COCO's JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.config.segmenter import default_palette
from iformer.data.detection import Instance, decode_mask
from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.files import json_text, write_text
from iformer.tasks.detection.inference import (
    NO_LIMITS,
    DetectionLimits,
    Subject,
    TiledDetector,
    object_detector,
)
from iformer.tasks.detection.metric import coco_results
from iformer.tasks.interface import PredictOptions, Record, no_masks
from iformer.tasks.pictures import blend, draw_label, enlarged, label_font
from iformer.tasks.pyramid import PyramidPredictor, folded
from iformer.tasks.tiles import Tiling, tiling

VIDEOS = True
TAKES = frozenset({"min_score", "max_detections", "iou", "tile", "overlap", "track", "max_frames"})
"""The options of `PredictOptions` that this task reads."""

COCO_FILE = "coco.json"
MAX_NAMES = 50
"""Largest number of names drawn on an image; more names would cover it."""
_MASK_OPACITY = 0.45
_LOW_SCORE = 0.1
"""Lowest score of a box that may continue a track, as in the ByteTrack paper. Boxes below `min_score` are not
reported."""


class BoxTracker:
    """Follows the objects of one video by their boxes, with ByteTrack (https://arxiv.org/abs/2110.06864).

    Classes are not compared, so an object keeps its number if the detector names it differently in some frames.
    A number is kept through a second without the object or, in time lapses, through one frame without it.
    """

    def __init__(self, *, rate: float, min_score: float) -> None:
        """Start without tracks.

        Args:
            rate: frames per second. The motion model predicts by frames of this rate.
            min_score: lowest score of a box that starts a track; boxes with lower scores only continue tracks.

        Raises:
            MissingDependencyError: `trackers` or `supervision` is not installed.
        """
        self._boxes: Any = require("supervision", extra="track").Detections  # trackers imports it
        trackers = require("trackers", extra="track")
        self._tracker: Any = trackers.ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=min_score, high_conf_det_threshold=min_score
        )
        self._seconds = -math.inf

    def update(self, found: Mapping[str, Any], seconds: float) -> list[int | None]:
        """Return the number of each detection's track in the next frame, from 1; None if it has no track yet.

        A track gets its number in the second of two frames that show it.

        Args:
            found: the detections, as `Detector.detect` returns them, on the CPU.
            seconds: time of the frame. A time that is not after that of the frame before is increased.
        """
        before, self._seconds = self._seconds, max(seconds, self._seconds + 1e-3)
        if math.isfinite(before):
            self._tracker.maximum_time_without_update = max(1.0, 2.5 * (self._seconds - before))
        count = len(found["scores"])
        boxes = self._boxes(
            xyxy=found["boxes"].float().numpy().reshape(-1, 4),
            confidence=found["scores"].float().numpy(),
            data={"index": np.arange(count)},
        )
        tracks: list[int | None] = [None] * count
        followed = self._tracker.update(boxes, timestamp=self._seconds)
        if len(followed):  # not in the order of `boxes`
            for index, track in zip(followed.data["index"].tolist(), followed.tracker_id.tolist(), strict=True):
                tracks[index] = track + 1 if track >= 0 else None
        return tracks


class DetectionPredictor(PyramidPredictor):
    """`TaskPredictor` of detectors. An answer is the dict of an image from `Detector.detect`, on the CPU."""

    def __init__(
        self,
        subject: Subject,
        *,
        device: torch.device | str = "cpu",
        min_score: float = 0.5,
        tiling: Tiling | None = None,
        limits: DetectionLimits = NO_LIMITS,
        require_finite: bool = False,
        track: bool = False,
    ) -> None:
        """Prepare a network or an artifact.

        Args:
            subject: the detector.
            device: where a network runs.
            min_score: detections with a lower score are dropped.
            tiling: how large images are cut into tiles. None: no tiles.
            limits: settings that replace the detector's own.
            require_finite: outputs that are NaN or infinite are an error of their image.
            track: follow the objects of videos. Answers for frames then have `tracks`, the result of
                `BoxTracker.update`.

        Raises:
            MissingDependencyError: `track` is set, and `trackers` or `supervision` is not installed.
        """
        if track:
            BoxTracker(rate=25, min_score=min_score)  # raises before any work
        on = resolve_device(device)
        if isinstance(subject, nn.Module):
            subject.to(on).eval()
        found = object_detector(subject, limits)
        found.require_finite = require_finite
        self._detector = found = TiledDetector(found, tiling) if tiling is not None else found
        super().__init__(
            found.name, found.class_names, found.num_classes, value_range=found.value_range, device=on
        )
        self.min_score, self._track = min_score, track
        # tiles: a whole box wins over a cut one of a higher score, so low scores could replace reported boxes
        self._low_score = min_score if tiling is not None else min(min_score, _LOW_SCORE)
        self._tracker: BoxTracker | None = None
        self._tracked_size: tuple[int, int] | None = None
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def answer(self, image: Image.Image) -> dict[str, Any]:
        return self._detect(image, self.min_score)

    @torch.inference_mode()
    def _detect(self, image: Image.Image, min_score: float) -> dict[str, Any]:
        found = self._detector.detect([pil_to_tensor(image)], min_score=min_score)[0]
        return {name: value.cpu() for name, value in found.items()}

    def start_video(self, rate: float) -> None:
        if self._track:
            self._tracker = BoxTracker(rate=rate, min_score=self.min_score)
            self._tracked_size = None

    def answer_frame(self, image: Image.Image, seconds: float) -> dict[str, Any]:
        if self._tracker is None:
            return self.answer(image)
        found = self._detect(image, self._low_score)
        self._tracked_size = first = self._tracked_size or image.size
        # a video may change its resolution: tracks are in the pixels of its first frame
        scale = torch.tensor([first[0] / image.width, first[1] / image.height]).repeat(2)
        found["tracks"] = self._tracker.update({**found, "boxes": found["boxes"] * scale}, seconds)
        reported = int((found["scores"] >= self.min_score).sum())  # the highest score comes first
        return {name: value[:reported] for name, value in found.items()}

    def draw(self, image: Image.Image, answer: Mapping[str, Any], scale: int = 1) -> Image.Image:
        return draw_detections(image, answer, self.class_names, scale)

    def record(self, answer: Mapping[str, Any]) -> Record:
        results = coco_results(answer, 0, range(len(self.class_names)), masks=False)
        detections: list[Record] = [
            {"name": self.class_names[r["category_id"]], "score": r["score"], "box": r["bbox"]} for r in results
        ]
        if "tracks" in answer:
            for detection, track in zip(detections, answer["tracks"], strict=True):
                detection["track"] = track
        return {"detections": detections}

    def masks(self) -> Callable[[], npt.NDArray[np.bool_] | None]:
        """Return a function to compute the latest record's masks: bool N x H x W, or None if there are none."""
        pasted: Sequence[torch.Tensor] = self.latest.get("masks", ())
        return partial(_binary_masks, pasted) if len(pasted) else no_masks

    def words(self, record: Record) -> str:
        found = [f"{item['name']} {100 * item['score']:.0f} %" for item in record["detections"]]
        return "   ".join(found) or "nothing"

    def write(
        self, path: Path, image: Image.Image, answer: Mapping[str, Any], out: Path | None, name: str
    ) -> Record:
        if out is not None:
            number = len(self._images) + 1
            self._images.append(
                {"id": number, "file_name": str(path), "width": image.width, "height": image.height}
            )
            ids = range(1, len(self.class_names) + 1)
            for result in coco_results(answer, number, ids, masks="masks" in answer):
                area = result["bbox"][2] * result["bbox"][3]
                self._annotations.append({"id": len(self._annotations) + 1, "iscrowd": 0, "area": area, **result})
        return {}

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths of the drawn images and videos and of `coco.json`, relative to the output folder."""
        return [*super().files(paths), Path(COCO_FILE)]

    def finish(self, out: Path) -> list[str]:
        """Write `coco.json` in COCO's format: the detections are annotations with a score."""
        categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names, start=1)]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        write_text(out / COCO_FILE, json_text(content))
        return super().finish(out)


def _binary_masks(pasted: Sequence[torch.Tensor]) -> npt.NDArray[np.bool_]:
    return np.stack([(mask[0] > 0.5).numpy() for mask in pasted])


def open_predictor(subject: Subject, options: PredictOptions) -> DetectionPredictor:
    """Build the predictor of the verb `predict`; see `iformer.tasks.interface.PredictModule`."""
    min_score = 0.5 if options.min_score is None else options.min_score
    predictor = DetectionPredictor(
        folded(subject),
        device=options.device,
        min_score=min_score,
        tiling=tiling(options.tile, options.overlap),
        limits=DetectionLimits(detections=options.max_detections, nms_iou=options.iou),
        require_finite=True,
        track=bool(options.track),
    )
    predictor.max_frames = options.max_frames
    return predictor


def draw_detections(
    image: Image.Image, found: Mapping[str, Any], class_names: Sequence[str], scale: int = 1
) -> Image.Image:
    """Draw boxes, names with scores, and masks if there are any, on a copy of an RGB image.

    Only the first `MAX_NAMES` objects get names.

    Args:
        found: the detections of the image, as `Detector.detect` or `Detector.forward` returns them. Without
            `scores`, as for annotated objects, names are drawn without scores. `tracks` are drawn after the names.
        scale: factor of the picture's sides.
    """
    colours = default_palette(len(class_names))
    labels = found["labels"].tolist()
    scores = found["scores"].tolist() if "scores" in found else [None] * len(labels)
    tracks = found.get("tracks", [None] * len(labels))
    if "masks" in found:
        overlay_HWC = np.array(image)
        for index in reversed(range(len(scores))):  # the highest score on top
            overlay_HWC[(found["masks"][index][0] > 0.5).cpu().numpy()] = colours[labels[index]]
        image = blend(image, overlay_HWC, _MASK_OPACITY)
    drawn = enlarged(image, scale)
    draw = ImageDraw.Draw(drawn)
    font = label_font(drawn.size)
    width = max(1, round(max(drawn.size) / 300))
    for index in reversed(range(len(scores))):
        left, top, right, bottom = (round(scale * value, 1) for value in found["boxes"][index].tolist())
        colour = colours[labels[index]]
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if index < MAX_NAMES:
            score = scores[index]
            text = class_names[labels[index]]
            text += "" if tracks[index] is None else f" #{tracks[index]}"
            text += "" if score is None else f" {100 * score:.0f} %"
            draw_label(draw, text, (left, top), colour, font, drawn.size)
    return drawn


def draw_objects(
    image: Image.Image, instances: Sequence[Instance], class_names: Sequence[str], scale: int = 1
) -> Image.Image:
    """Draw annotated objects, except crowd regions, in the same way as `draw_detections` draws detections."""
    objects = [instance for instance in instances if not instance.crowd]
    boxes_N4 = torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    truth: dict[str, Any] = {"boxes": boxes_N4, "labels": torch.tensor([one.label for one in objects])}
    masks = [one.mask for one in objects if one.mask is not None]
    if objects and len(masks) == len(objects):
        truth["masks"] = [torch.from_numpy(decode_mask(mask, image.height, image.width))[None] for mask in masks]
    return draw_detections(image, truth, class_names, scale)
