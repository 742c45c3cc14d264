"""How right a network is on labelled images. Anything that turns images into logits can be evaluated.

Shape letters: N images, B batch, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.image_dataset import ImageDataset
from iformer.data.loader import Loader, build_loader
from iformer.data.samples import DataSplits, ImageSet
from iformer.data.sources import load_data
from iformer.data.transforms import Normalize, eval_transform
from iformer.errors import DataError
from iformer.tasks.classification.loss import Classification
from iformer.training.distributed import all_gather
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.results import ClassificationEvaluation

Predictor = Callable[[Tensor], Tensor]
"""Images as the evaluation transform leaves them, uint8 B x 3 x H x W, to logits, B x K."""

Split = Literal["val", "train", "all"]

DEFAULT_VAL_SPLIT = 0.2

Progress = Callable[[int, int], None]
"""Called with (batches done, batches in all) of this process."""


class NetworkPredictor:
    """A network and its normalisation as a `Predictor`.

    The network is used as it is at each call, so one that is still training can be looked at again and again.
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
        """uint8 B x 3 x H x W on any device to fp32 logits, B x K, on the network's."""
        images = images.to(self.device, non_blocking=True)
        with autocast(self.precision, self.device):
            logits: Tensor = self.network(self._normalize(images).contiguous(memory_format=self._memory_format))
        return logits.float()


def evaluation_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int | None = None,
    cache: Literal["none", "ram"] = "none",
) -> Loader:
    """Batches in which each image of a set comes exactly once, on one process.

    Raises:
        DataError: an image cannot be read, or there is none.
    """
    dataset = ImageDataset(image_set, eval_transform(preprocessing), cache=cache)
    return build_loader(dataset, batch_size=batch_size, train=False, workers=workers)


def evaluate(
    predictor: Predictor,
    loader: Loader,
    task: Classification,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ClassificationEvaluation:
    """Ask a predictor for every image of a loader.

    With several processes (torch.distributed) each one goes through its own share, of any length, and all
    get the same result over all images.

    Raises:
        DataError: an image cannot be read.
        MissingDependencyError: torchmetrics is not installed.
    """
    device = torch.device(device)
    metric = task.metric(device=device)
    indices, labels, probabilities = [], [], []
    for done, batch in enumerate(loader.epoch(), start=1):
        logits_BK = predictor(batch["images"]).to(device)
        metric.update(logits_BK, {"labels": batch["labels"].to(device)})
        indices.append(batch["indices"])
        labels.append(batch["labels"])
        probabilities.append(logits_BK.softmax(1).cpu())
        if progress is not None:
            progress(done, len(loader.sampler))
    dataset = loader.dataset
    assert isinstance(dataset, ImageDataset)
    classes = len(task.class_names)
    shares = all_gather(
        (
            np.concatenate([np.empty(0, np.int64), *indices]),
            np.concatenate([np.empty(0, np.int64), *labels]),
            np.concatenate([np.empty((0, classes), np.float32), *probabilities]),
        )
    )
    rows = [np.concatenate(columns) for columns in zip(*shares, strict=True)]
    order = np.argsort(rows[0])
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
    part: Split = "val",
    val_split: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    strict: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[ClassificationEvaluation, list[str]]:
    """Evaluate anything that has a checkpoint's metadata on a data set by name.

    Args:
        predictor: images to logits of `num_classes` classes.
        metadata: class names and preprocessing, and what the network was trained on.
        num_classes: K.
        data: `elpv` or a folder, as `iformer.data.sources.load_data` takes it.
        part: the images that are for validation, those for training, or all.
        val_split: share of a folder without parts that is for validation; None: as in the network's training,
            where that is known, else 0.2.
        batch_size: images at once.
        workers: processes that load images.
        strict: an image that cannot be read is an error instead of being skipped.
        device: where the metric is computed.

    Returns:
        The evaluation, in the network's order of classes, and what a reader of it should know, one line each.

    Raises:
        DataError: the data cannot be used, or its classes are not the network's.
    """
    found = find_labelled(metadata, num_classes, data, part=part, val_split=val_split, strict=strict)
    loader = evaluation_loader(found.images, metadata.preprocessing, batch_size=batch_size, workers=workers)
    with loader:
        evaluation = evaluate(predictor, loader, Classification(found.images.class_names), device=device)
    return evaluation, list(found.notes)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images with the classes of a network, in its order."""

    images: ImageSet
    train: ImageSet
    """The images for training; the same as `images` where those were asked for."""
    notes: tuple[str, ...]
    """What a reader of an evaluation on them should know, one line each."""


def find_labelled(
    metadata: Metadata,
    num_classes: int,
    data: str,
    *,
    part: Split = "val",
    val_split: float | None = None,
    strict: bool = False,
) -> Labelled:
    """A data set by name for a network; the arguments are those of `evaluate_on_data`.

    Raises:
        DataError: the data cannot be used, or its classes are not the network's.
    """
    trained_on = metadata.provenance.get("data")
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    if val_split is None:
        val_split = float(trained_on.get("val_split", DEFAULT_VAL_SPLIT))
    split = load_data(data, val_split=val_split, strict=strict)
    class_names = metadata.class_names or split.val.class_names
    if len(class_names) != num_classes:
        raise DataError(f"{data} has {len(class_names)} classes, the network tells {num_classes} apart")
    return Labelled(
        images=with_class_order(_part(split, part), class_names),
        train=with_class_order(split.train, class_names),
        notes=(*split.warnings, *_what_was_seen(split, part, data, trained_on)),
    )


def with_class_order(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """The same images with their labels counted in a network's order of classes.

    Raises:
        DataError: the images' classes are not the network's; the message names those that differ.
    """
    if set(image_set.class_names) != set(class_names):
        differences = [
            f"only {whose}: {', '.join(sorted(names)[:10])}{' …' if len(names) > 10 else ''}"
            for whose, names in (
                ("the network knows", set(class_names) - set(image_set.class_names)),
                ("the data has", set(image_set.class_names) - set(class_names)),
            )
            if names
        ]
        raise DataError(f"the classes of the data are not those of the network ({'; '.join(differences)})")
    position = {name: index for index, name in enumerate(class_names)}
    labels = [position[name] for name in image_set.class_names]
    samples = tuple(replace(sample, label=labels[sample.label]) for sample in image_set.samples)
    return replace(image_set, class_names=tuple(class_names), samples=samples)


def _part(split: DataSplits, part: Split) -> ImageSet:
    if part == "all":
        name = split.val.name.removesuffix(" val")
        return replace(split.val, name=name, samples=(*split.train.samples, *split.val.samples))
    return split.val if part == "val" else split.train


def _what_was_seen(split: DataSplits, part: Split, data: str, trained_on: dict[str, Any]) -> list[str]:
    """A warning where images are evaluated that the network was trained on, or may have been."""
    if trained_on.get("train_fingerprint") == split.train.fingerprint():
        return [] if part == "val" else ["the network was trained on some of these images"]
    if trained_on.get("name") == data:
        return [
            "the files are not split as they were when this network was trained: it may have been trained on "
            "some of these images"
        ]
    return []
