"""Evaluate detectors with COCO's metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iformer.data.detection import DetectionSample, DetectionSet
from iformer.data.loader import Loader, build_loader
from iformer.data.sources.detection import load_detection
from iformer.errors import ConfigError, DataError, counted
from iformer.files import json_text
from iformer.tasks.class_order import refuse_unknown, share_notes
from iformer.tasks.detection.dataset import DetectionImages, too_many_objects, with_class_order
from iformer.tasks.detection.inference import DetectionLimits, ObjectDetector, Subject, object_detector
from iformer.tasks.detection.metric import DetectionMetric
from iformer.tasks.interface import EvaluateOptions
from iformer.tasks.pyramid import evaluation_split, folded
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.logs import ProgressView
from iformer.training.records.results import Evaluation

TAKES = frozenset({"split", "workers", "val_split", "batch_size", "max_detections", "iou"})
"""The options of `EvaluateOptions` that this task reads."""

Progress = Callable[[int], None]
"""Callback that is called after each batch with the number of images in the batch."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DetectionEvaluation(Evaluation):
    """Detections on every image of a set, and COCO's metrics.

    `metrics`, with AP in percent, has `box_ap` (mean over IoU thresholds 0.5 to 0.95), `box_ap50`, `box_ap75`,
    `box_ap_small`, `box_ap_medium`, `box_ap_large` (None if there is no such object), `mask_ap` and so on for
    networks with masks, `images` (their number), and `per_class`: `{class name: {"box_ap", "box_ap50", …,
    "support"}}` (support: number of objects).
    """

    image_set: DetectionSet
    results: list[dict[str, Any]]
    """All detections in COCO's result format."""

    @property
    def box_ap(self) -> float:
        """Box AP in percent."""
        return float(self.metrics["box_ap"])

    @property
    def mask_ap(self) -> float | None:
        """Mask AP in percent; None if the network or the data has no masks."""
        return self.metrics.get("mask_ap")

    @property
    def columns(self) -> dict[str, str]:  # type: ignore[override]
        names = [f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50")]
        shown = {name: f"{name.replace('_', ' ').replace('ap', 'AP')} %" for name in names}
        with_masks = "mask_ap" in self.metrics
        return {k: v for k, v in shown.items() if with_masks or k.startswith("box")} | {"support": "objects"}

    def files(self) -> dict[str, str]:
        """Return `{"coco_results.json": text}` with all detections in COCO's result format."""
        return {"coco_results.json": json_text(self.results)}


def evaluate(
    subject: Subject,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> DetectionEvaluation:
    """Evaluate a detector (in eval mode) or an artifact on every image of a loader over `DetectionImages`.

    With torch.distributed each rank evaluates its own share, which may be empty, and all ranks return the
    result over all images.

    Raises:
        DataError: an image cannot be read.
        ConfigError: the network has another number of classes than the data.
        MissingDependencyError: faster-coco-eval is not installed.
        UserError: the artifact's record does not describe a detector.
    """
    device = torch.device(device)
    dataset = loader.dataset
    assert isinstance(dataset, DetectionImages)
    image_set = dataset.image_set
    detector = object_detector(subject)
    if detector.num_classes != len(image_set.class_names):
        raise ConfigError(
            f"the network has {counted(detector.num_classes, 'class')}, {image_set.name} has "
            f"{len(image_set.class_names)}"
        )
    metric = DetectionMetric(image_set.ground_truth(), masks=detector.has_masks and image_set.has_masks)
    for batch in loader.epoch():
        with torch.inference_mode(), autocast(precision, device):
            samples = [image_set.samples[index] for index in batch["indices"].tolist()]
            found = _detect(detector, batch["images"], samples)
        ids = [sample.image_id for sample in samples]
        metric.update(found, {"image_ids": ids})
        if progress is not None:
            progress(len(ids))
    metrics = metric.compute()
    return DetectionEvaluation(metrics=metrics, image_set=image_set, results=metric.results)


def _detect(
    detector: ObjectDetector, images: Sequence[Tensor], samples: Sequence[DetectionSample]
) -> list[dict[str, Any]]:
    """Detect objects on images; an error names the file of the image that causes it."""
    try:
        return detector.detect(images)
    except DataError:
        for image, sample in zip(images, samples, strict=True):
            try:
                detector.detect([image])
            except DataError as error:
                raise DataError(f"{sample.path}: {error}") from None
        raise


def evaluate_set(
    subject: Subject,
    image_set: DetectionSet,
    *,
    batch_size: int = 4,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> DetectionEvaluation:
    """Evaluate a detector or an artifact on an image set, on one process.

    Objects of classes that the network does not know are left out.

    Raises:
        DataError: an image cannot be read, the set has none of the network's classes, or an output of the network
            is NaN or infinite.
        ConfigError, MissingDependencyError, UserError: see `evaluate`.
    """
    detector = object_detector(subject)
    image_set = with_class_order(image_set, detector.class_names)
    dataset = DetectionImages(image_set, masks=False, value_range=detector.value_range)
    detector.require_finite = True
    with build_loader(dataset, batch_size=batch_size, train=False, workers=workers) as loader:
        return evaluate(detector, loader, device=device, precision=precision, progress=progress)


def evaluate_data(
    subject: Subject, data: str, options: EvaluateOptions
) -> tuple[DetectionEvaluation, Sequence[str]]:
    """Evaluate a detector or an artifact on a data set by name; see `iformer.tasks.interface.EvaluateModule`."""
    splits, image_set = evaluation_split(subject, data, options, load_detection)
    if not any(image_set.class_counts.values()):
        raise DataError(f"{data}: no object to evaluate with in the {options.split or 'val'} split")
    if options.precision == "fp32":  # half precision rounds folded weights, which makes larger errors
        subject = folded(subject)
    subject = subject.to(options.device) if isinstance(subject, nn.Module) else subject
    limits = DetectionLimits(detections=options.max_detections, nms_iou=options.iou)
    detector = object_detector(subject, limits)
    if options.strict:
        refuse_unknown(detector.class_names, image_set.class_names)
    notes = [*splits.warnings, *_share(image_set, detector.class_names)]
    with ProgressView(total=len(image_set), what="evaluating") as view:
        evaluation = evaluate_set(
            detector,
            image_set,
            batch_size=options.batch_size or 4,
            workers=options.workers,
            device=options.device,
            precision=options.precision,
            progress=view.advance,
        )
    notes += too_many_objects(evaluation.image_set, detector.detections, trained=True)
    return replace(evaluation, split=options.split or "val"), notes


def _share(image_set: DetectionSet, known: tuple[str, ...]) -> list[str]:
    used = sum(with_class_order(image_set, known).class_counts.values())
    total = sum(image_set.class_counts.values())
    return share_notes(known, image_set.class_names, used=used, total=total, noun="object")
