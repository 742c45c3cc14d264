"""Records that training and evaluation hand to reports, to the command line and to metrics.json.

Shape letters: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iformer.config.metadata import Metadata
from iformer.config.recipe import Recipe
from iformer.data.detection import DetectionSet
from iformer.data.samples import ImageSet
from iformer.data.segmentation import SemanticSet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How right a network is on every image of a set."""

    metrics: dict[str, Any]
    """`images` (how many), the task's metrics (shares are in percent) and `per_class`.

    What they are in each task is told by the classes derived from this one.
    """

    @property
    def summary(self) -> dict[str, float]:
        """The metrics that are one number each, such as top1, loss and images."""
        return {name: value for name, value in self.metrics.items() if isinstance(value, int | float)}


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation(Evaluation):
    """What a classifier answered on every image of a set, and how right it was.

    Row i of the arrays belongs to `image_set.samples[indices[i]]`; rows are in ascending order of index.

    `metrics` has `top1`, `top5` (with more than 5 classes), `loss` (mean cross entropy), `images` (N),
    `macro`: `{"precision", "recall", "f1"}` (means over classes),
    `per_class`: `{class name: {"precision", "recall", "f1", "support"}}` (support: number of images),
    `confusion`: K x K nested lists of counts, row true class, column predicted class.
    """

    image_set: ImageSet
    indices: npt.NDArray[np.int64]
    """N positions in `image_set.samples`."""
    labels: npt.NDArray[np.int64]
    """N true classes, as positions in `image_set.class_names`."""
    probabilities: npt.NDArray[np.float32]
    """N x K softmax outputs; column k is `image_set.class_names[k]`."""


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(Evaluation):
    """What a detector found on every image of a set, and COCO's figures for it.

    `metrics` has `box_ap` (mean over overlaps of 0.5 to 0.95), `box_ap50`, `box_ap75`, `box_ap_small`,
    `box_ap_medium`, `box_ap_large` (None where there is no such object), the same for `mask_ap` with masks,
    `images`, and `per_class`: `{class name: {"box_ap", "box_ap50", …, "support"}}` (support: objects).
    """

    image_set: DetectionSet
    results: list[dict[str, Any]]
    """All detections in the form of COCO's results."""


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(Evaluation):
    """How right a segmenter is on every image of a set.

    `metrics` has `miou` and `mean_accuracy` (means over the classes that occur), `pixel_accuracy`, `images`,
    `per_class`: `{class name: {"iou", "accuracy", "support"}}` (support: pixels) and `confusion`, K x K lists
    of pixels, row true class, column said class.
    """

    image_set: SemanticSet


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training run."""

    folder: Path
    """The run folder; see `iformer.training.records.run_folder` for the files in it."""
    model_name: str
    data_name: str
    """The data as the user named it: `elpv` or a folder."""
    recipe: Recipe
    recipe_name: str
    parameters: int
    """Parameters of the network as trained."""
    train_images: int
    evaluation: Evaluation
    """The last (averaged) weights on the validation images, in fp32. The headline number is this one's."""
    best: dict[str, Any]
    """`{"epoch", "step", "top1", …}` of the checkpoint kept as `best`: it was chosen on the validation images
    themselves, so its number is optimistic."""
    history: list[dict[str, Any]]
    """One record an epoch: `epoch` (from 1), `step`, `seconds` (since the run's start, stops not counted), `lr`,
    `size` (training images, pixels), `train_loss`, `train_accuracy` (percent, on augmented and mixed images),
    `images_per_second`, `data_wait` (share of the time spent waiting for images, 0 to 1) and, in epochs with
    an evaluation, the metrics that are one number each: `val_loss`, `val_top1`, `val_top5`, …."""
    seconds: float
    """Time spent training and evaluating, over all the sessions of a resumed run."""
    precision: str
    """`fp32`, `bf16` or `fp16`, as used."""
    device: str
    """The device in words: `CPU (AMD EPYC …, 2 threads)`."""
    processes: int
    metadata: Metadata
    """What was written into `last.safetensors`: class names, preprocessing, metrics, provenance."""
    warnings: list[str] = field(default_factory=list)
    """Images that were skipped, and why."""
    report: Path | None = None
    """The written report, or None where none was written."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The headline metrics: those of `evaluation`."""
        return self.evaluation.metrics
