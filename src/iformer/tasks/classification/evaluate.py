"""Evaluate classifiers, artifacts and anything else that turns images into logits.

Shape letters: N images, B batch, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.loader import Loader, build_loader
from iformer.data.samples import ImageSet
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.exportable import Forward
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import DataError, counted
from iformer.files import json_text
from iformer.models.classifier import Classifier
from iformer.models.finite import NOT_FINITE
from iformer.models.folding import fold
from iformer.tasks.classification.dataset import ImageDataset, find_labelled
from iformer.tasks.classification.metric import ClassificationMetric, multi_label_metrics
from iformer.tasks.interface import EvaluateOptions, Split
from iformer.training.distributed import all_gather
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.logs import ProgressView
from iformer.training.records.results import Evaluation

TAKES = frozenset({"split", "workers", "val_split", "batch_size"})
"""The options of `EvaluateOptions` that this task reads."""

LOGITS = "logits"
"""Name of the output of an exported classifier."""

Predictor = Callable[[Tensor], Tensor]
"""Function from uint8 images of the evaluation transform (B x C x H x W) to logits (B x K)."""

Progress = Callable[[int], None]
"""Callback that is called after each batch with the number of images in the batch."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassificationEvaluation(Evaluation):
    """Predictions on every image of a set, and their metrics.

    Row i of the arrays belongs to `image_set.samples[indices[i]]`; rows are sorted by index.

    `metrics`, with shares in percent, has `top1`, `top5` (from 6 classes on), `loss` (mean cross entropy),
    `images` (N), `ece` (expected calibration error),
    `macro`: `{"precision", "recall", "f1"}` (means over classes),
    `per_class`: `{class name: {"precision", "recall", "f1", "support"}}` (support: number of images),
    `confusion`: K x K nested lists of counts, row true class, column predicted class (see `metric.Confusion` for
    the form that it has with more than 1,000 classes).
    """

    image_set: ImageSet
    indices: npt.NDArray[np.int64]
    """(N,) indices into `image_set.samples`."""
    labels: npt.NDArray[np.int64]
    """(N,) true classes, as indices into `image_set.class_names`."""
    probabilities: npt.NDArray[np.float32]
    """N x K softmax outputs; column k belongs to `image_set.class_names[k]`."""

    columns: ClassVar = {"precision": "precision %", "recall": "recall %", "f1": "F1 %", "support": "images"}

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return float(self.metrics["top1"])

    @property
    def top5(self) -> float | None:
        """Top-5 accuracy in percent; None with fewer than 6 classes."""
        return self.metrics.get("top5")

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return float(self.metrics["loss"])

    @property
    def headline(self) -> str:
        metrics, images = self.metrics, counted(self.metrics["images"], "image")
        top5 = f", top-5 {metrics['top5']:.2f} %" if "top5" in metrics else ""
        return f"top-1 {metrics['top1']:.2f} %{top5}, loss {metrics['loss']:.4f} on {images}"

    def files(self) -> dict[str, str]:
        """Return `{"predictions.jsonl": text}`: one line per image with label, answer and probability."""
        names = self.image_set.class_names
        lines = []
        for index, label, probabilities_K in zip(self.indices, self.labels, self.probabilities, strict=True):
            answer = int(probabilities_K.argmax())
            record = {
                "image": str(self.image_set.samples[index]),
                "label": names[label],
                "predicted": names[answer],
                "probability": float(probabilities_K[answer]),
            }
            lines.append(json_text(record) + "\n")
        return {"predictions.jsonl": "".join(lines)}


@dataclass(frozen=True, kw_only=True, repr=False)
class MultiLabelEvaluation(Evaluation):
    """Predictions of a multi-label network on every image of a set, and their metrics.

    Row i of the arrays belongs to `image_set.samples[indices[i]]`; rows are sorted by index.

    `metrics`, with shares in percent, has `map` (mean over classes of the average precision), `threshold` (the
    probability, 0 to 1, from which a class is a yes: the network's own or, in training, the one from 0.01 to 0.99
    with the largest `f1`), `f1` (mean over classes of F1 at this threshold), `loss` (mean binary cross entropy),
    `images` (N), `macro`: `{"ap", "precision", "recall", "f1"}` (means over classes) and `per_class`:
    `{class name: {"ap", "precision", "recall", "f1", "support"}}` (support: number of images).
    """

    image_set: ImageSet
    indices: npt.NDArray[np.int64]
    """(N,) indices into `image_set.samples`."""
    targets: npt.NDArray[np.float32]
    """N x K: 1 for each class that an image has, else 0."""
    probabilities: npt.NDArray[np.float32]
    """N x K sigmoid outputs; column k belongs to `image_set.class_names[k]`."""

    columns: ClassVar = {
        "ap": "AP %", "precision": "precision %", "recall": "recall %", "f1": "F1 %", "support": "images"
    }  # fmt: skip

    @property
    def map(self) -> float:
        """Mean average precision in percent."""
        return float(self.metrics["map"])

    @property
    def f1(self) -> float:
        """Mean F1 at `metrics["threshold"]`, in percent."""
        return float(self.metrics["f1"])

    @property
    def loss(self) -> float:
        """Mean binary cross entropy."""
        return float(self.metrics["loss"])

    @property
    def headline(self) -> str:
        metrics = self.metrics
        return (
            f"mAP {metrics['map']:.2f} %, F1 {metrics['f1']:.2f} % at threshold {metrics['threshold']:g}, "
            f"loss {metrics['loss']:.4f} on {counted(metrics['images'], 'image')}"
        )

    def names_at(self, row: int) -> tuple[list[str], list[str]]:
        """Return the names of the labels and of the predicted labels of the image in row `row`."""
        names, threshold = self.image_set.class_names, self.metrics["threshold"]
        return (
            [names[k] for k in np.flatnonzero(self.targets[row])],
            [names[k] for k in np.flatnonzero(self.probabilities[row] >= threshold)],
        )

    def files(self) -> dict[str, str]:
        """Return `{"predictions.jsonl": text}`: one line per image with labels, answers and all probabilities."""
        names = self.image_set.class_names
        lines = []
        for row, index in enumerate(self.indices):
            labels, predicted = self.names_at(row)
            record = {
                "image": str(self.image_set.samples[index]),
                "labels": labels,
                "predicted": predicted,
                "probabilities": dict(zip(names, map(float, self.probabilities[row]), strict=True)),
            }
            lines.append(json_text(record) + "\n")
        return {"predictions.jsonl": "".join(lines)}


class NetworkPredictor:
    """`Predictor` that normalises images and runs a network.

    Each call uses the weights that the network has at that time, so a network in training can be evaluated
    repeatedly.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        channels_last: bool = True,
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        self.precision = precision
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._normalize = Normalize(preprocessing).to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return fp32 logits (B x K, on the network's device) of uint8 images (B x C x H x W, any device)."""
        images = images.to(self.device, non_blocking=True)
        with autocast(self.precision, self.device):
            logits: Tensor = self.network(self._normalize(images).contiguous(memory_format=self._memory_format))
        return logits.float()


def with_mirror_images(predictor: Predictor) -> Predictor:
    """Return a predictor of the mean logits of each image and its left-right mirror image."""
    return lambda images: (predictor(images) + predictor(images.flip(3))) / 2


def logits_of(forward: Forward) -> Predictor:
    """Return an artifact, or another function from images to named outputs, as a `Predictor`."""
    return lambda images: forward(images)[LOGITS]


def evaluation_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None = None,
    cache: Literal["none", "ram"] = "none",
    multi_label: bool = False,
) -> Loader:
    """Build a loader that yields each image of a set exactly once, on one process.

    Raises:
        DataError: an image cannot be read, or the set is empty.
    """
    dataset = ImageDataset(
        image_set,
        eval_transform(preprocessing),
        cache=cache,
        channels=len(preprocessing.mean),
        value_range=preprocessing.value_range,
        multi_label=multi_label,
    )
    return build_loader(dataset, batch_size=batch_size, train=False, workers=workers)


def evaluate(
    predictor: Predictor,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    threshold: float | None = None,
    require_finite: bool = True,
    progress: Progress | None = None,
) -> ClassificationEvaluation | MultiLabelEvaluation:
    """Evaluate a predictor on every image of a loader over an `ImageDataset`.

    If images may have several labels (`ImageDataset.multi_label`), the result is a `MultiLabelEvaluation`.

    With torch.distributed each rank evaluates its own share, which may be empty, and all ranks return the
    result over all images.

    Args:
        predictor: function to logits, in the order of the image set's classes.
        loader: yields each image once.
        device: device of the metric.
        threshold: with several labels, the probability from which a class is a yes; see `multi_label_metrics`.
        require_finite: check that all logits are finite.
        progress: called after each batch with the number of images of the batch.

    Raises:
        DataError: an image cannot be read, or `require_finite` is set and a logit is NaN or infinite.
        MissingDependencyError: torchmetrics is not installed.
    """
    dataset = loader.dataset
    assert isinstance(dataset, ImageDataset)
    class_names = dataset.image_set.class_names
    several = dataset.multi_label
    metric = ClassificationMetric(class_names, device=device)
    indices, labels, probabilities = [], [], []
    for batch in loader.epoch():
        logits_BK = predictor(batch["images"]).to(device)
        if require_finite and not (finite_B := logits_BK.isfinite().all(1)).all():
            first = batch["indices"][int(finite_B.cpu().int().argmin())]
            raise DataError(f"{dataset.image_set.samples[first]}: {NOT_FINITE}")
        if not several:
            metric.update(logits_BK, {"labels": batch["labels"].to(device)})
        indices.append(batch["indices"])
        labels.append(batch["labels"])
        probabilities.append((logits_BK.sigmoid() if several else logits_BK.softmax(1)).float().cpu())
        if progress is not None:
            progress(len(batch["indices"]))
    no_rows = np.empty((0, len(class_names)), np.float32)
    shares = all_gather(
        (
            np.concatenate([np.empty(0, np.int64), *indices]),
            np.concatenate([no_rows if several else np.empty(0, np.int64), *labels]),
            np.concatenate([no_rows, *probabilities]),
        )
    )
    rows = [np.concatenate(columns) for columns in zip(*shares, strict=True)]
    order = np.argsort(rows[0])
    if several:
        targets_NK, probabilities_NK = rows[1][order], rows[2][order]
        return MultiLabelEvaluation(
            image_set=dataset.image_set,
            indices=rows[0][order],
            targets=targets_NK,
            probabilities=probabilities_NK,
            metrics=multi_label_metrics(probabilities_NK, targets_NK, class_names, threshold=threshold),
        )
    return ClassificationEvaluation(
        image_set=dataset.image_set,
        indices=rows[0][order],
        labels=rows[1][order],
        probabilities=rows[2][order],
        metrics=metric.compute(),
    )


def evaluate_on_data(
    predictor: Predictor,
    metadata: Metadata,
    num_classes: int,
    data: str,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    split: Split | None = None,
    val_split: float | None = None,
    strict: bool = False,
) -> tuple[ClassificationEvaluation | MultiLabelEvaluation, list[str]]:
    """Evaluate a predictor on the data set that `data` names.

    For `data`, `split`, `val_split` and `strict` see `iformer.tasks.classification.dataset.find_labelled`.

    Args:
        predictor: function from images to logits of `num_classes` classes.
        metadata: class names, preprocessing and training data of the network.
        batch_size: images in one call of the predictor.
        workers: processes that load images; None: `iformer.data.loader.auto_workers`.
        device: device of the metric.

    Returns:
        The evaluation, in the network's order of classes, and notes for its reader.

    Raises:
        DataError: the data cannot be read, its classes are not the network's, or a logit is NaN or infinite.
        MissingDependencyError: torchmetrics is not installed.
    """
    found = find_labelled(metadata, num_classes, data, split=split, val_split=val_split, strict=strict)
    images, several = found.images, metadata.multi_label
    loader = evaluation_loader(
        images, metadata.preprocessing, batch_size=batch_size, workers=workers, multi_label=several
    )
    with loader, ProgressView(total=len(images), what="evaluating") as view:
        threshold = metadata.threshold if several else None
        evaluation = evaluate(predictor, loader, device=device, threshold=threshold, progress=view.advance)
    return replace(evaluation, split=found.split), list(found.notes)


def evaluate_data(
    subject: Classifier | ArtifactRunner, data: str, options: EvaluateOptions
) -> tuple[ClassificationEvaluation | MultiLabelEvaluation, Sequence[str]]:
    """Evaluate a classifier or an artifact on a data set by name; see `iformer.tasks.interface.EvaluateModule`."""
    predictor: Predictor
    if isinstance(subject, Classifier):
        # half precision rounds folded weights, which makes larger errors
        exact = options.precision == "fp32" and not subject.is_folded
        network = (fold(subject) if exact else subject).to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metadata, num_classes = network.metadata, network.num_classes
        predictor = NetworkPredictor(
            network, metadata.preprocessing, device=options.device, precision=options.precision
        )
    else:
        predictor, info = logits_of(subject), subject.info
        num_classes = info.num_classes
        metadata = Metadata(
            class_names=info.class_names,
            multi_label=info.multi_label,
            preprocessing=info.preprocessing,
            metrics={name: value for name, value in (info.postprocess or {}).items() if name == "threshold"},
            provenance=info.provenance,
        )
    return evaluate_on_data(
        predictor,
        metadata,
        num_classes,
        data,
        batch_size=options.batch_size or 64,
        workers=options.workers,
        device=options.device,
        split=options.split,
        val_split=options.val_split,
        strict=options.strict,
    )
