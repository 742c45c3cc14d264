"""Semantic segmentation as a training run: the job and its workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from iformer.config.segmenter import LightSegmenterConfig
from iformer.data.segmentation import SemanticSplits
from iformer.data.sources.masks import load_semantic
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT
from iformer.data.transforms import Normalize
from iformer.errors import UserError
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.interface import Warn
from iformer.tasks.pyramid import as_trained, fine_tune, starting_backbone, structure, trained_weights
from iformer.tasks.registry import training_option
from iformer.tasks.segmentation.config import SegmentationRecipe
from iformer.tasks.segmentation.dataset import SemanticImages
from iformer.tasks.segmentation.evaluate import SegmentationEvaluation, evaluate, evaluation_images
from iformer.tasks.segmentation.loss import Segmentation
from iformer.training.distributed import RankContext
from iformer.training.job import RunSettings, TrainJob, resumed_network
from iformer.training.network.precision import Precision
from iformer.training.protocol import Batch, Workload
from iformer.training.records.results import Evaluation, TrainResult


def load_job(settings: RunSettings, model: str, *, val_split: float | None, strict: bool, warn: Warn) -> TrainJob:
    """Load the data and build the run; see `iformer.tasks.interface.TrainModule`."""
    data = load_semantic(settings.data_name, val_split=val_split, strict=strict)
    warn(data.warnings)
    if data.split_off:
        share = DEFAULT_VAL_SPLIT if val_split is None else val_split
        settings = replace(settings, data_options={"val_split": share})
    before = resumed_network(settings)
    network = before if isinstance(before, Segmenter | LightSegmenter) else model
    return segmentation_job(data, settings, model=network, model_name=model, warn=warn)


def segmentation_job(
    data: SemanticSplits,
    settings: RunSettings,
    *,
    model: str | Segmenter | LightSegmenter = "iformer_t",
    model_name: str | None = None,
    warn: Warn = lambda lines: None,
) -> TrainJob:
    """Build a run that trains the network of `recipe.network`: a Semantic FPN or a light segmenter.

    Args:
        data: training and validation images.
        settings: `settings.recipe.weights` says what the backbone starts from.
        model: a size or a classifier's checkpoint for the backbone, a segmenter's checkpoint to fine-tune, or a
            segmenter, which is used as it is.
        model_name: name for logs and checkpoints. None: `model`, or the name of the segmenter's backbone.
        warn: called with lines for the user, such as which layers are new.

    Raises:
        UserError: the weights are of another kind or size than the recipe and `model`, or both the recipe and
            `model` name weights to fine-tune.
        UnknownNameError: no such network.
        WeightsError: the starting weights cannot be fetched or read, or do not fit.
    """
    recipe = settings.recipe
    assert isinstance(recipe, SegmentationRecipe)
    torch.manual_seed(recipe.seed)
    network: Segmenter | LightSegmenter
    if isinstance(model, Segmenter | LightSegmenter):
        network, model_name = model, model_name or model.config.backbone.name
    else:
        weights = trained_weights(model, recipe)
        if weights is not None and isinstance(weights.config, LightSegmenterConfig) != (recipe.network == "light"):
            raise UserError(
                f"{weights.source} holds {weights.row.title}, the recipe {settings.recipe_name} is for another "
                f"kind of segmenter; give {training_option(weights)}"
            )
        backbone = starting_backbone(model, recipe, settings, weights)
        make = recipe.light_config if recipe.network == "light" else recipe.segmenter_config
        config = make(
            backbone.config.with_options(num_classes=0),
            num_classes=len(data.train.class_names),
            palette=data.train.palette,
        )
        config = as_trained(config, backbone)
        if weights is not None:
            config = replace(config, **structure(weights))
        model_name = model_name or model
        network = (
            LightSegmenter(config, backbone)
            if isinstance(config, LightSegmenterConfig)
            else Segmenter(config, backbone)
        )
        if weights is not None:
            warn([fine_tune(network, weights, data.train.class_names)])
    network.pyramid.freeze(recipe.freeze)
    return TrainJob(
        **vars(settings),
        task=Segmentation(data.train.class_names, dice_weight=recipe.dice_weight),
        workload=SegmentationWorkload,
        model=network,
        model_name=model_name,
        data=data,
        preprocessing=network.config.preprocessing,
    )


class SegmentationWorkload(Workload):
    """The workload of segmentation: square crops for training, whole images for evaluation."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        assert isinstance(job.recipe, SegmentationRecipe)
        assert isinstance(job.model, Segmenter | LightSegmenter)
        super().__init__(job.recipe, context)
        self.job, self.recipe = job, job.recipe
        self._config = job.model.config
        self._normalize = Normalize(job.preprocessing).to(context.device)
        self._layout = torch.channels_last if job.recipe.channels_last else torch.contiguous_format

    def train_dataset(self) -> SemanticImages:
        config = self._config
        size, max_size = config.preprocessing.size
        return SemanticImages(
            self.job.data.train,
            self.recipe,
            size=size,
            max_size=max_size,
            fill=config.mean,
            value_range=config.value_range,
        )

    def val_dataset(self) -> SemanticImages:
        return evaluation_images(self.job.data.val, self._config.preprocessing)

    def prepare(self, batch: Batch) -> Batch:
        on_device = {name: value.to(self.context.device, non_blocking=True) for name, value in batch.items()}
        images = self._normalize(on_device["images"]).contiguous(memory_format=self._layout)
        return {**on_device, "images": images}

    def evaluate(self, network: nn.Module, *, precision: Precision) -> SegmentationEvaluation:
        assert isinstance(network, Segmenter | LightSegmenter)
        return evaluate(
            network,
            self.val_loader(),
            device=self.context.device,
            precision=precision,
            sliding=self.recipe.sliding,
        )

    def draw_predictions(self, network: nn.Module, evaluation: Evaluation) -> Image.Image:
        from iformer.tasks.segmentation.report import draw_examples

        return draw_examples(network, self.job.data.val, name=self.job.model_name, device=self.context.device)

    def write_report(self, result: TrainResult) -> Path:
        from iformer.tasks.segmentation.report import write_report

        return write_report(result)
