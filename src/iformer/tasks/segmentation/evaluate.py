"""Evaluate segmenters by the IoU of classes, at the size of the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from iformer.config.preprocessing import Preprocessing
from iformer.config.segmenter import IGNORED
from iformer.data.loader import Loader, build_loader
from iformer.data.segmentation import SemanticSet
from iformer.data.sources.masks import load_semantic
from iformer.errors import DataError, counted
from iformer.tasks.class_order import refuse_unknown, share_notes
from iformer.tasks.interface import EvaluateOptions
from iformer.tasks.pyramid import evaluation_split, folded
from iformer.tasks.segmentation.dataset import SemanticImages, evaluation_transform, with_class_order
from iformer.tasks.segmentation.inference import Subject, pixel_classifier
from iformer.tasks.segmentation.metric import SegmentationMetric
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.logs import ProgressView
from iformer.training.records.results import Evaluation

TAKES = frozenset({"split", "workers", "sliding", "val_split"})
"""The options of `EvaluateOptions` that this task reads."""

Progress = Callable[[int], None]
"""Callback that is called after each batch with the number of images in the batch."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SegmentationEvaluation(Evaluation):
    """Metrics of a segmenter on every image of a set.

    `metrics`, with shares in percent, has `miou` and `mean_accuracy` (means over the classes that occur),
    `pixel_accuracy`, `images` (their number), `per_class`: `{class name: {"iou", "accuracy", "support"}}`
    (support: number of pixels) and `confusion`, K x K nested lists of pixel counts, row true class, column
    predicted class.
    """

    image_set: SemanticSet
    left_out: int = 0
    """Number of labelled pixels of classes that the network does not know."""

    columns: ClassVar = {"iou": "IoU %", "accuracy": "accuracy %", "support": "pixels"}

    @property
    def miou(self) -> float:
        """Mean IoU in percent."""
        return float(self.metrics["miou"])


def evaluate(
    subject: Subject,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    sliding: bool = False,
    progress: Progress | None = None,
) -> SegmentationEvaluation:
    """Evaluate a segmenter (in eval mode, on `device`) or an artifact on every image of a loader.

    With torch.distributed each rank evaluates its own share, which may be empty, and all ranks return the
    result over all images.

    Args:
        subject: see `iformer.tasks.segmentation.inference.pixel_classifier`.
        loader: loader over the result of `evaluation_images`.
        sliding: use overlapping windows of the network's size instead of whole images; Semantic FPN only.

    Raises:
        DataError: an image cannot be read.
        MissingDependencyError: torchmetrics is not installed.
        UserError: `sliding` is set and the input has a fixed size, or an artifact's record does not describe a
            segmenter.
    """
    device = torch.device(device)
    dataset = loader.dataset
    assert isinstance(dataset, SemanticImages)
    image_set = dataset.image_set
    metric = SegmentationMetric(image_set.class_names, annotated=set(image_set.classes_of_masks) or None)
    segmenter = pixel_classifier(subject, device=device, sliding=sliding)
    for batch in loader.epoch():
        left_out = batch["left_out"]
        for image, mask_HW, index in zip(batch["images"], batch["masks"], batch["indices"].tolist(), strict=True):
            try:
                with torch.inference_mode(), autocast(precision, device):
                    classes_HW = segmenter.classes(image, tuple(mask_HW.shape))
            except DataError as error:
                raise DataError(f"{image_set.samples[index].path}: {error}") from None
            metric.update(classes_HW[None].cpu(), {"masks": mask_HW[None], "left_out": left_out})
            left_out = 0
        if progress is not None:
            progress(len(batch["images"]))
    metrics = metric.compute()
    return SegmentationEvaluation(metrics=metrics, image_set=image_set, left_out=metric.left_out)


def evaluate_set(
    subject: Subject,
    image_set: SemanticSet,
    *,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    sliding: bool = False,
    progress: Progress | None = None,
) -> SegmentationEvaluation:
    """Evaluate a segmenter or an artifact on an image set, on one process; see `evaluate`.

    Pixels of classes that the network does not know are ignored.

    Raises:
        DataError: an image cannot be read, the classes of the set do not fit the network, no pixel has a class, or
            a logit is NaN or infinite.
        MissingDependencyError, UserError: see `evaluate`.
    """
    segmenter = pixel_classifier(subject, device=torch.device(device), sliding=sliding)
    image_set = with_class_order(image_set, segmenter.class_names)
    if segmenter.num_classes != len(image_set.class_names):
        raise DataError(
            f"the network has {counted(segmenter.num_classes, 'class')}, {image_set.name} has "
            f"{len(image_set.class_names)}"
        )
    dataset = evaluation_images(image_set, segmenter.preprocessing)
    segmenter.require_finite = True
    with build_loader(dataset, batch_size=1, train=False, workers=workers) as loader:
        found = evaluate(segmenter, loader, device=device, precision=precision, progress=progress)
    if not any(one["support"] for one in found.metrics["per_class"].values()):
        raise DataError(f"{image_set.name}: the masks have no pixel of a class; {IGNORED} means no class")
    return found


def evaluation_images(image_set: SemanticSet, preprocessing: Preprocessing) -> SemanticImages:
    """Return the images of a set, transformed by `evaluation_transform`, with masks of the original size."""
    return SemanticImages(
        image_set,
        size=preprocessing.size[0],
        max_size=preprocessing.size[1],
        fill=preprocessing.mean,  # type: ignore[arg-type]
        value_range=preprocessing.value_range,
        transform=evaluation_transform(preprocessing),
    )


def evaluate_data(
    subject: Subject, data: str, options: EvaluateOptions
) -> tuple[SegmentationEvaluation, Sequence[str]]:
    """Evaluate a segmenter or an artifact on a data set by name; see `iformer.tasks.interface.EvaluateModule`."""
    splits, image_set = evaluation_split(subject, data, options, load_semantic)
    if options.precision == "fp32":  # half precision rounds folded weights, which makes larger errors
        subject = folded(subject)
    known = pixel_classifier(subject, device=torch.device(options.device), sliding=False).class_names
    if options.strict:
        refuse_unknown(known, image_set.class_names)
    with ProgressView(total=len(image_set), what="evaluating") as view:
        evaluation = evaluate_set(
            subject.to(options.device) if isinstance(subject, nn.Module) else subject,
            image_set,
            workers=options.workers,
            device=options.device,
            precision=options.precision,
            sliding=bool(options.sliding),
            progress=view.advance,
        )
    used = sum(row["support"] for row in evaluation.metrics["per_class"].values())
    notes = share_notes(
        known, image_set.class_names, used=used, total=used + evaluation.left_out, noun="labelled pixel"
    )
    return replace(evaluation, split=options.split or "val"), [*splits.warnings, *notes]
