"""Find objects on images and videos: boxes, names, masks, and COCO's JSON."""

from __future__ import annotations

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
from iformer.tasks.pictures import blend, draw_label, label_font
from iformer.tasks.pyramid import PyramidPredictor, folded
from iformer.tasks.tiles import Tiling, tiling

VIDEOS = True
TAKES = frozenset({"min_score", "max_detections", "iou", "tile", "overlap"})
"""The options of `PredictOptions` that this task reads."""

COCO_FILE = "coco.json"
MAX_NAMES = 50
"""Largest number of names drawn on an image; more names would cover it."""
_MASK_OPACITY = 0.45


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
    ) -> None:
        """Prepare a network or an artifact.

        Args:
            subject: the detector.
            device: where a network runs.
            min_score: detections with a lower score are dropped.
            tiling: how large images are cut into tiles. None: no tiles.
            limits: settings that replace the detector's own.
            require_finite: outputs that are NaN or infinite are an error of their image.
        """
        on = resolve_device(device)
        if isinstance(subject, nn.Module):
            subject.to(on).eval()
        found = object_detector(subject, limits)
        found.require_finite = require_finite
        self._detector = found = TiledDetector(found, tiling) if tiling is not None else found
        super().__init__(
            found.name, found.class_names, found.num_classes, value_range=found.value_range, device=on
        )
        self.min_score = min_score
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> dict[str, Any]:
        found = self._detector.detect([pil_to_tensor(image)], min_score=self.min_score)[0]
        return {name: value.cpu() for name, value in found.items()}

    def draw(self, image: Image.Image, answer: Mapping[str, Any]) -> Image.Image:
        return draw_detections(image, answer, self.class_names)

    def record(self, answer: Mapping[str, Any]) -> Record:
        results = coco_results(answer, 0, range(len(self.class_names)), masks=False)
        return {
            "detections": [
                {"name": self.class_names[r["category_id"]], "score": r["score"], "box": r["bbox"]}
                for r in results
            ]
        }

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
    return DetectionPredictor(
        folded(subject),
        device=options.device,
        min_score=min_score,
        tiling=tiling(options.tile, options.overlap),
        limits=DetectionLimits(detections=options.max_detections, nms_iou=options.iou),
        require_finite=True,
    )


def draw_detections(image: Image.Image, found: Mapping[str, Any], class_names: Sequence[str]) -> Image.Image:
    """Draw boxes, names with scores, and masks if there are any, on a copy of an RGB image.

    Only the first `MAX_NAMES` objects get names.

    Args:
        found: the detections of the image, as `Detector.detect` or `Detector.forward` returns them. Without
            `scores`, as for annotated objects, names are drawn without scores.
    """
    colours = default_palette(len(class_names))
    labels = found["labels"].tolist()
    scores = found["scores"].tolist() if "scores" in found else [None] * len(labels)
    if "masks" in found:
        overlay_HWC = np.array(image)
        for index in reversed(range(len(scores))):  # the highest score on top
            overlay_HWC[(found["masks"][index][0] > 0.5).cpu().numpy()] = colours[labels[index]]
        image = blend(image, overlay_HWC, _MASK_OPACITY)
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    font = label_font(image.size)
    width = max(1, round(max(image.size) / 300))
    for index in reversed(range(len(scores))):
        left, top, right, bottom = (round(value, 1) for value in found["boxes"][index].tolist())
        colour = colours[labels[index]]
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if index < MAX_NAMES:
            score = scores[index]
            text = class_names[labels[index]] + ("" if score is None else f" {100 * score:.0f} %")
            draw_label(draw, text, (left, top), colour, font, image.size)
    return drawn


def draw_objects(image: Image.Image, instances: Sequence[Instance], class_names: Sequence[str]) -> Image.Image:
    """Draw annotated objects, except crowd regions, in the same way as `draw_detections` draws detections."""
    objects = [instance for instance in instances if not instance.crowd]
    boxes_N4 = torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    truth: dict[str, Any] = {"boxes": boxes_N4, "labels": torch.tensor([one.label for one in objects])}
    masks = [one.mask for one in objects if one.mask is not None]
    if objects and len(masks) == len(objects):
        truth["masks"] = [torch.from_numpy(decode_mask(mask, image.height, image.width))[None] for mask in masks]
    return draw_detections(image, truth, class_names)
