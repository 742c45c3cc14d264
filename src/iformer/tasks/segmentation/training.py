"""Semantic segmentation as a training run: how a job is made, its workload, and evaluation.

Shape letters: B batch, K classes, H and W an image's sides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iformer.config.dense_recipe import SegmentationRecipe
from iformer.data.loader import Loader, build_loader
from iformer.data.segmentation import SemanticSet, SemanticSplits
from iformer.data.transforms import Normalize
from iformer.models.segmenter import Segmenter
from iformer.tasks.dense_dataset import SemanticImages
from iformer.tasks.dense_training import check_classes, normalisation, starting_backbone
from iformer.tasks.segmentation.loss import Segmentation, SegmentationMetric, classes_of
from iformer.training.distributed import RankContext
from iformer.training.job import RunSettings, TrainJob
from iformer.training.loaders import Loaders
from iformer.training.network.precision import Precision, autocast
from iformer.training.protocol import Batch
from iformer.training.records.results import SegmentationEvaluation, TrainResult


def segmentation_job(
    data: SemanticSplits,
    settings: RunSettings,
    *,
    model: str | Segmenter = "iformer_t",
    model_name: str | None = None,
) -> TrainJob:
    """A run that trains a Semantic FPN.

    Args:
        data: training and validation images.
        settings: `settings.recipe.weights` says what the backbone starts from.
        model: the backbone's name, a classifier's checkpoint to take it from, or a segmenter as it is.
        model_name: what to call it; by default as `model` says.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched, read or do not fit.
    """
    recipe = settings.recipe
    assert isinstance(recipe, SegmentationRecipe)
    torch.manual_seed(recipe.seed)
    if isinstance(model, Segmenter):
        network, model_name = model, model_name or model.config.backbone.name
    else:
        backbone = starting_backbone(model, recipe, settings)
        config = recipe.segmenter_config(
            backbone.config.with_options(num_classes=0),
            num_classes=len(data.train.class_names),
            palette=data.train.palette,
            **normalisation(backbone),
        )
        network, model_name = Segmenter(config, backbone), model_name or model
    network.pyramid.freeze(recipe.freeze)
    return TrainJob(
        **vars(settings),
        task=Segmentation(data.train.class_names),
        workload=SegmentationWorkload,
        model=network,
        model_name=model_name,
        data=data,
        preprocessing=network.config.preprocessing,
    )


class SegmentationWorkload:
    """Squares cut out of images, with a class for each pixel; see `iformer.training.protocol.Workload`."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        assert isinstance(job.recipe, SegmentationRecipe)
        assert isinstance(job.model, Segmenter)
        self.job, self.recipe, self.context = job, job.recipe, context
        self._config = job.model.config
        self._normalize = Normalize(job.preprocessing).to(context.device)
        self._layout = torch.channels_last if job.recipe.channels_last else torch.contiguous_format
        self._loaders = Loaders(job.recipe, context)
        self._val_loader: Loader | None = None

    def train_loader(self) -> Loader:
        config = self._config
        dataset = SemanticImages(
            self.job.data.train, self.recipe, size=config.size, max_size=config.max_size, fill=config.mean
        )
        return self._loaders.make(dataset, train=True)

    def prepare(self, batch: Batch) -> Batch:
        on_device = {name: value.to(self.context.device, non_blocking=True) for name, value in batch.items()}
        images = self._normalize(on_device["images"]).contiguous(memory_format=self._layout)
        return {**on_device, "images": images}

    def evaluate(self, network: nn.Module, *, precision: Precision) -> SegmentationEvaluation:
        if self._val_loader is None:
            self._val_loader = self._loaders.make(_evaluation_images(self.job.data.val, self._config), train=False)
        assert isinstance(network, Segmenter)
        return evaluate_segmenter(
            network,
            self._val_loader,
            self.job.task.class_names,
            device=self.context.device,
            precision=precision,
            sliding=self.recipe.sliding,
        )

    def write_report(self, result: TrainResult) -> Path:
        from iformer.tasks.dense_report import write_segmentation_report

        return write_segmentation_report(result)

    def close(self) -> None:
        self._loaders.close()


def evaluate_segmenter(
    network: Segmenter,
    loader: Loader,
    class_names: tuple[str, ...],
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    sliding: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentationEvaluation:
    """mIoU of a segmenter, in eval mode, on every image of a loader of `SemanticImages`, at the masks' sizes.

    With several processes (torch.distributed) each one goes through its own share, of any length, and all
    get the same result over all images.

    Args:
        sliding: in overlapping windows of the network's size instead of whole images.

    Raises:
        DataError: an image cannot be read.
        MissingDependencyError: torchmetrics is not installed.
    """
    device = torch.device(device)
    dataset = loader.dataset
    assert isinstance(dataset, SemanticImages)
    metric = SegmentationMetric(class_names)
    normalize = Normalize(network.config.preprocessing).to(device)
    window = network.config.size if sliding else None
    for done, batch in enumerate(loader.epoch(), start=1):
        for image, mask_HW in zip(batch["images"], batch["masks"], strict=True):
            with torch.inference_mode(), autocast(precision, device):
                normalized = normalize(image[None].to(device))
                classes_HW = classes_of(network, normalized, tuple(mask_HW.shape), window=window)
            metric.update(classes_HW[None].cpu(), {"masks": mask_HW[None]})
        if progress is not None:
            progress(done, len(loader.sampler))
    return SegmentationEvaluation(metrics=metric.compute(), image_set=dataset.image_set)


def evaluate_semantic_set(
    network: Segmenter,
    image_set: SemanticSet,
    *,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    sliding: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentationEvaluation:
    """`evaluate_segmenter` on a set by itself, on one process.

    Raises:
        DataError: an image cannot be read, or the classes are not the network's, in its order.
    """
    check_classes(network.metadata, image_set.class_names)
    dataset = _evaluation_images(image_set, network.config)
    with build_loader(dataset, batch_size=1, train=False, workers=workers) as loader:
        return evaluate_segmenter(
            network,
            loader,
            image_set.class_names,
            device=device,
            precision=precision,
            sliding=sliding,
            progress=progress,
        )


def _evaluation_images(image_set: SemanticSet, config: Any) -> SemanticImages:
    return SemanticImages(image_set, size=config.size, max_size=config.max_size, fill=config.mean)
