"""Classification as a training run: the job and its workload."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import check_channels
from iformer.data.parallel import map_in_threads
from iformer.data.samples import DataSplits, Sample
from iformer.data.sources import load_data
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT, select_classes, split_fold
from iformer.data.sources.tables import is_table
from iformer.data.transforms import (
    Normalize,
    Transform,
    TransformSchedule,
    eval_transform,
    random_erasing,
    train_transform,
)
from iformer.errors import ConfigError, DataError, counted, listed
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.tasks.classification.calibration import fit_temperature, scale_logits
from iformer.tasks.classification.config import ClassificationRecipe, ImageRecipe
from iformer.tasks.classification.dataset import ImageDataset, refuse_val_split
from iformer.tasks.classification.distillation import DistilledClassification
from iformer.tasks.classification.evaluate import (
    ClassificationEvaluation,
    MultiLabelEvaluation,
    NetworkPredictor,
    Predictor,
    evaluate,
    with_mirror_images,
)
from iformer.tasks.classification.loss import Classification, LabelLoss, balanced_weights, named_weights
from iformer.tasks.classification.teacher import build_teacher
from iformer.tasks.interface import Warn
from iformer.training.distributed import RankContext
from iformer.training.job import RunSettings, TrainJob, resumed_network, starting_network
from iformer.training.network.precision import Precision
from iformer.training.protocol import Batch, Workload
from iformer.training.records.results import Evaluation, TrainResult


def load_job(settings: RunSettings, model: str, *, val_split: float | None, strict: bool, warn: Warn) -> TrainJob:
    """Load the data and build the run; see `iformer.tasks.interface.TrainModule`."""
    share = DEFAULT_VAL_SPLIT if val_split is None else val_split
    multi_label = bool(getattr(settings.recipe, "multi_label", False))
    data = load_data(
        settings.data_name,
        val_split=share,
        strict=strict,
        multi_label=multi_label,
        # folds need no split of their own: groups of a table may make folds, but no split with all classes
        for_training=settings.fold is None or not is_table(settings.data_name),
    )
    if not settings.resume:  # a run stores the share even if its data is split
        refuse_val_split(val_split, data, settings.data_name)
    warn(data.warnings)
    options: dict[str, Any] = {"val_split": share}
    if settings.classes is not None:
        data, options = select_classes(data, settings.classes), {**options, "classes": list(settings.classes)}
    if settings.fold is not None:
        data, options = split_fold(data, *settings.fold), {**options, "fold": list(settings.fold)}
        _check_classes(data, settings.data_name)
    settings = replace(settings, data_options=options)
    return classification_job(data, settings, model=resumed_network(settings) or model, model_name=model)


def classification_job(
    data: DataSplits,
    settings: RunSettings,
    *,
    model: str | nn.Module = "iformer_t",
    model_name: str | None = None,
) -> TrainJob:
    """Build a classification run: the network, with its starting weights and a new head, and the task.

    Args:
        data: training and validation images.
        settings: `settings.recipe.weights` says what a named network starts from.
        model: a model name, a checkpoint to fine-tune, or a network of any kind with one output per class,
            which is used as it is.
        model_name: name for logs and checkpoints; None: `model`, or the class of the network.

    Raises:
        ConfigError: the recipe is for another task, or does not fit the network or the number of channels.
        DataError: images do not have the channels that the network takes.
        UnknownNameError: no such network or teacher.
        WeightsError: the weights of the network or teacher cannot be fetched or read, or do not fit.
    """
    recipe = settings.recipe
    if not isinstance(recipe, ClassificationRecipe):
        raise ConfigError(f"recipe {settings.recipe_name} is for {recipe.task}; expected one for classify")
    torch.manual_seed(recipe.seed)
    distilled = recipe.distillation.loss != "none"
    if isinstance(model, nn.Module):
        network = model
        model_name = model_name or type(model).__name__
    else:
        weights = "none" if settings.continues else recipe.weights
        network = starting_network(
            model,
            weights=weights,
            entry=recipe.entry if weights == recipe.weights else None,
            num_classes=len(data.train.class_names),
            reset_head=True,
            distillation=True if distilled else None,
            **recipe.network_options,
        )
        model_name = model_name or model
    if isinstance(network, Classifier):
        network.set_distilled_training()  # the loss reads both heads
    if isinstance(network, Backbone):
        network.freeze(recipe.freeze)
    for name, default in (("freeze", "none"), ("temperature_scaling", False)):
        if getattr(recipe, name) != default and not isinstance(network, Classifier):
            raise ConfigError(f"recipe.{name} is for networks of this package; got {type(network).__name__}")
    preprocessing = recipe.preprocessing
    if isinstance(network, Backbone):
        # what the weights were trained on
        preprocessing = preprocessing.with_normalization_of(network.metadata.preprocessing)
    train_transform(preprocessing, recipe.augment)  # raises if it cannot change images of these channels
    _check_channels(data, len(preprocessing.mean))
    task, identity = _task(data, recipe, preprocessing)
    return TrainJob(
        **vars(settings),
        task=task,
        identity=identity,
        workload=ClassificationWorkload,
        model=network,
        model_name=model_name,
        data=data,
        preprocessing=preprocessing,
        multi_label=recipe.multi_label,
    )


def _check_classes(data: DataSplits, name: str) -> None:
    """Raise `DataError` if the data has only one class, or a class without an image."""
    counts = data.train.class_counts
    if len(counts) < 2:
        raise DataError(f"{name}: only one class ({listed(list(counts))}); a classifier needs at least two")
    if unread := [class_name for class_name, count in counts.items() if not count]:
        raise DataError(f"{name}: no image of {listed(unread)} can be read; leave the class out by --classes")


def _check_channels(data: DataSplits, channels: int) -> None:
    """Check by the file headers that every image has the extra channel of a network that takes 2 or 4 channels.

    Raises:
        DataError: images have other channels; the message names up to three of them.
    """
    if channels in (1, 3):
        return

    def problem(sample: Sample) -> str | None:
        try:
            check_channels(sample, channels)
        except DataError as error:
            return str(error)
        return None

    samples = itertools.chain(data.train.samples, data.val.samples)
    problems = [found for found in map_in_threads(problem, samples) if found]
    if problems:
        raise DataError(listed(problems, limit=3, separator="; ", length=400))


def _task(
    data: DataSplits, recipe: ClassificationRecipe, preprocessing: Preprocessing
) -> tuple[Classification, dict[str, Any]]:
    """Return the task, with the recipe's teacher if it has one, and the values that a resumed run must share."""
    augment, distillation, class_names = recipe.augment, recipe.distillation, data.train.class_names
    weights = None
    if isinstance(recipe.class_weights, dict):
        weights = named_weights(recipe.class_weights, class_names)
    elif recipe.class_weights == "balanced":
        weights = balanced_weights(list(data.train.class_counts.values()))
    options: dict[str, Any] = {
        "label_loss": LabelLoss(
            kind=recipe.loss,
            multi_label=recipe.multi_label,
            focal_gamma=recipe.focal_gamma,
            class_weights=weights,
        ),
        "label_smoothing": recipe.label_smoothing,
        "mixup_alpha": augment.mixup_alpha,
        "cutmix_alpha": augment.cutmix_alpha,
        "mixup_prob": augment.mixup_prob,
        "mixup_switch_prob": augment.mixup_switch_prob,
    }
    if distillation.loss == "none":
        return Classification(class_names, **options), {}
    teacher = build_teacher(
        distillation.teacher,
        class_names,
        preprocessing,
        entry=distillation.teacher_entry,
        compiled=recipe.compile,
    )
    task = DistilledClassification(
        class_names,
        teacher=teacher,
        distillation=distillation.loss,
        weight=distillation.weight,
        temperature=distillation.temperature,
        **options,
    )
    return task, {"teacher": teacher.fingerprint}


class ImageWorkload(Workload):
    """Base class of workloads with whole images of one size."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        recipe = job.recipe
        assert isinstance(recipe, ImageRecipe)
        super().__init__(recipe, context)
        self.job, self._image_recipe = job, recipe
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self._normalize = Normalize(job.preprocessing).to(context.device)
        self._erase = random_erasing(recipe.augment, context.device)

    def train_dataset(self) -> ImageDataset:
        job, recipe = self.job, self._image_recipe
        stages: list[tuple[int, Transform]] = []
        for epoch in sorted({0, *(start for start, _ in recipe.size_schedule)}):
            size = recipe.train_size(epoch)
            preprocessing = replace(job.preprocessing, size=(size, size))
            stages.append((epoch, train_transform(preprocessing, recipe.augment)))
        return ImageDataset(
            job.data.train,
            TransformSchedule(stages),
            seed=recipe.seed,
            cache=recipe.cache,
            channels=len(job.preprocessing.mean),
            value_range=job.preprocessing.value_range,
            multi_label=job.multi_label,
        )

    def val_dataset(self) -> ImageDataset:
        preprocessing = self.job.preprocessing
        return ImageDataset(
            self.job.data.val,
            eval_transform(preprocessing),
            cache=self._image_recipe.cache,
            channels=len(preprocessing.mean),
            value_range=preprocessing.value_range,
            multi_label=self.job.multi_label,
        )

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images, which are on the device of the rank, as normalised input of the network."""
        normalized: Tensor = self._normalize(images).contiguous(memory_format=self._layout)
        return normalized

    def prepare(self, batch: Batch) -> Batch:
        on_device = {name: value.to(self.context.device, non_blocking=True) for name, value in batch.items()}
        images = self.normalized(on_device["images"])
        on_device["images"] = self._erase(images) if self._erase is not None else images
        return on_device


class ClassificationWorkload(ImageWorkload):
    """The workload of classification: images of one size with their labels."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        super().__init__(job, context)
        assert isinstance(job.recipe, ClassificationRecipe)
        self.recipe = job.recipe

    def train_weights(self) -> Sequence[float] | None:
        if self.recipe.sampling == "shuffle":
            return None
        labels, counts = self.job.data.train.labels, list(self.job.data.train.class_counts.values())
        return [1 / counts[label] for label in labels]

    def evaluate(
        self, network: nn.Module, *, precision: Precision
    ) -> ClassificationEvaluation | MultiLabelEvaluation:
        predictor: Predictor = NetworkPredictor(
            network,
            self.job.preprocessing,
            device=self.context.device,
            precision=precision,
            channels_last=self.recipe.channels_last,
        )
        if self.recipe.test_flip:
            predictor = with_mirror_images(predictor)
        # one odd validation image must not end a run
        evaluation = evaluate(predictor, self.val_loader(), device=self.context.device, require_finite=False)
        if self.context.rank == 0 and (overflows := int((~np.isfinite(evaluation.probabilities)).any(1).sum())):
            images = f"{overflows} of {counted(len(evaluation.probabilities), 'validation image')}"
            print(f"note: the network's outputs overflow on {images}", file=sys.stderr, flush=True)
        return evaluation

    @property
    def finishes(self) -> bool:  # type: ignore[override]
        return self.recipe.temperature_scaling

    def finish(self, network: nn.Module, evaluation: Evaluation) -> Evaluation:
        if not self.recipe.temperature_scaling:
            return evaluation
        assert isinstance(evaluation, ClassificationEvaluation)
        temperature = fit_temperature(evaluation.probabilities, evaluation.labels)
        scale_logits(network, temperature)
        after = self.evaluate(network, precision="fp32")
        before = evaluation.metrics["ece"]
        return replace(after, metrics={**after.metrics, "temperature": temperature, "ece_uncalibrated": before})

    def draw_predictions(self, network: nn.Module, evaluation: Evaluation) -> Image.Image | None:
        from iformer.tasks.classification.figures import example_sheet

        assert isinstance(evaluation, ClassificationEvaluation | MultiLabelEvaluation)
        return example_sheet(evaluation, title=f"{self.job.model_name} on {self.job.data_name}")

    def write_report(self, result: TrainResult) -> Path:
        from iformer.tasks.classification.report import write_report

        return write_report(result)
