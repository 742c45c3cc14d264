"""Detection as a training run: the job and its workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from iformer.config.light_detector import LightDetectorConfig
from iformer.data.detection import DetectionSplits
from iformer.data.sources.detection import load_detection
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT
from iformer.dependencies import require
from iformer.errors import DataError, UserError
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.detection.dataset import DetectionCanvases, DetectionImages, too_many_objects
from iformer.tasks.detection.evaluate import DetectionEvaluation, evaluate
from iformer.tasks.detection.loss import Detection, LightDetection
from iformer.tasks.interface import Warn
from iformer.tasks.pyramid import (
    as_trained,
    fine_tune,
    scaled,
    starting_backbone,
    structure,
    trained_weights,
)
from iformer.tasks.registry import training_option
from iformer.training.distributed import RankContext
from iformer.training.job import RunSettings, TrainJob, resumed_network
from iformer.training.network.precision import Precision
from iformer.training.protocol import Batch, Workload
from iformer.training.records.results import Evaluation, TrainResult


def load_job(settings: RunSettings, model: str, *, val_split: float | None, strict: bool, warn: Warn) -> TrainJob:
    """Load the data and build the run; see `iformer.tasks.interface.TrainModule`."""
    data = load_detection(settings.data_name, val_split=val_split, strict=strict)
    warn(data.warnings)
    if data.split_off:
        share = DEFAULT_VAL_SPLIT if val_split is None else val_split
        settings = replace(settings, data_options={"val_split": share})
    before = resumed_network(settings)
    network = before if isinstance(before, Detector | LightDetector) else model
    return detection_job(data, settings, model=network, model_name=model, warn=warn)


def detection_job(
    data: DetectionSplits,
    settings: RunSettings,
    *,
    model: str | Detector | LightDetector = "iformer_t",
    model_name: str | None = None,
    warn: Warn = lambda lines: None,
) -> TrainJob:
    """Build a run that trains the network of `recipe.network`: a Mask R-CNN, a Faster R-CNN or a light detector.

    Args:
        data: training and validation images.
        settings: `settings.recipe.weights` says what the backbone starts from.
        model: a size or a classifier's checkpoint for the backbone, a detector's checkpoint to fine-tune, or a
            detector, which is used as it is.
        model_name: name for logs and checkpoints. None: `model`, or the name of the detector's backbone.
        warn: called with lines for the user, such as which layers are new.

    Raises:
        UserError: the weights are of another kind or size than the recipe and `model`, or both the recipe and
            `model` name weights to fine-tune.
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched or read, or do not fit.
        DataError: the network has masks, and an object in the data has no mask.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    recipe = settings.recipe
    assert isinstance(recipe, DetectionRecipe)
    require("faster_coco_eval", extra="detect")  # otherwise only the first evaluation would fail
    torch.manual_seed(recipe.seed)
    network: Detector | LightDetector
    if isinstance(model, Detector | LightDetector):
        network, model_name = model, model_name or model.config.backbone.name
    else:
        weights = trained_weights(model, recipe)
        if weights is not None and isinstance(weights.config, LightDetectorConfig) != (recipe.network == "light"):
            raise UserError(
                f"{weights.source} holds {weights.row.title}, the recipe {settings.recipe_name} is for another "
                f"kind of detector; give {training_option(weights)}"
            )
        backbone = starting_backbone(model, recipe, settings, weights)
        features = backbone.config.with_options(num_classes=0)
        make = recipe.light_config if recipe.network == "light" else recipe.detector_config
        config = as_trained(make(features, num_classes=len(data.train.class_names)), backbone)
        if weights is not None:
            config = replace(config, **structure(weights))
        network = (
            LightDetector(config, backbone)
            if isinstance(config, LightDetectorConfig)
            else Detector(config, backbone)
        )
        if weights is not None:
            warn([fine_tune(network, weights, data.train.class_names)])
        model_name = model_name or model
    for split in (data.train, data.val):
        if isinstance(network, Detector) and network.config.masks and not split.has_masks:
            raise DataError(f"{split.name}: objects without a mask; --detector faster-rcnn trains on boxes alone")
    warn(too_many_objects(data.val, network.config.detections))
    network.pyramid.freeze(recipe.freeze)
    return TrainJob(
        **vars(settings),
        task=LightDetection(data.train.class_names, network)
        if isinstance(network, LightDetector)
        else Detection(data.train.class_names),
        workload=DetectionWorkload,
        model=network,
        model_name=model_name,
        data=data,
        preprocessing=network.config.preprocessing,
    )


class DetectionWorkload(Workload):
    """The workload of detection: images of any size, each with any number of objects."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        assert isinstance(job.recipe, DetectionRecipe)
        super().__init__(job.recipe, context)
        self.job, self.recipe = job, job.recipe

    def train_dataset(self) -> DetectionImages:
        network, images = self.job.model, self.job.data.train
        value_range = self.job.preprocessing.value_range
        if isinstance(network, LightDetector):
            return DetectionCanvases(images, self.recipe, fill=network.config.fill, value_range=value_range)
        assert isinstance(network, Detector)
        return DetectionImages(images, self.recipe, masks=network.config.masks, value_range=value_range)

    def val_dataset(self) -> DetectionImages:
        return DetectionImages(self.job.data.val, masks=False, value_range=self.job.preprocessing.value_range)

    def prepare(self, batch: Batch) -> Batch:
        device = self.context.device
        return {
            "images": [scaled(image, device) for image in batch["images"]],
            "targets": [{name: value.to(device) for name, value in target.items()} for target in batch["targets"]],
            "indices": batch["indices"],
        }

    def evaluate(self, network: nn.Module, *, precision: Precision) -> DetectionEvaluation:
        assert isinstance(network, Detector | LightDetector)
        return evaluate(network, self.val_loader(), device=self.context.device, precision=precision)

    def draw_predictions(self, network: nn.Module, evaluation: Evaluation) -> Image.Image:
        from iformer.tasks.detection.report import draw_examples

        return draw_examples(network, self.job.data.val, name=self.job.model_name, device=self.context.device)

    def write_report(self, result: TrainResult) -> Path:
        from iformer.tasks.detection.report import write_report

        return write_report(result)
