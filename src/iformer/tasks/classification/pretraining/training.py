"""Pretraining as a training run: the job, its workload and its report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from iformer.config.network import STRIDES
from iformer.data.sources.unlabelled import DEFAULT_VAL_SPLIT, load_unlabelled
from iformer.errors import ConfigError, UserError, counted
from iformer.models.classifier import Classifier
from iformer.models.weights.resolve import load
from iformer.tables import markdown_code, markdown_table
from iformer.tasks.classification.pretraining.config import NO_TEACHER, PretrainingRecipe
from iformer.tasks.classification.pretraining.features import FeatureDistillation, FeatureTeacher, ProjectedNetwork
from iformer.tasks.classification.teacher import read_teacher
from iformer.tasks.classification.training import ImageWorkload
from iformer.tasks.interface import Warn
from iformer.tasks.report import final_weights, write_task_report
from iformer.training.distributed import all_gather
from iformer.training.job import RunSettings, TrainJob, starting_network
from iformer.training.network.precision import Precision, autocast
from iformer.training.records.results import Evaluation, TrainResult


def load_job(settings: RunSettings, model: str, *, val_split: float | None, strict: bool, warn: Warn) -> TrainJob:
    """Find the images, open the teacher and build the run; see `iformer.tasks.interface.TrainModule`."""
    recipe = settings.recipe
    if not isinstance(recipe, PretrainingRecipe):
        raise ConfigError(f"recipe {settings.recipe_name} is for {recipe.task}; expected one for pretrain")
    if recipe.teacher == NO_TEACHER:
        raise UserError(
            "--teacher of iformer pretrain is missing; give a network of timm (timm/NAME), a size or a checkpoint"
        )
    val_split = DEFAULT_VAL_SPLIT if val_split is None else val_split
    data = load_unlabelled(settings.data_name, val_split=val_split, strict=strict)
    warn(data.warnings)
    torch.manual_seed(recipe.seed)
    network = starting_network(
        model,
        weights="none" if settings.continues else recipe.weights,
        entry=None if settings.continues else recipe.entry,
        num_classes=0,
        reset_head=True,
        **recipe.network_options,
    )
    assert isinstance(network, Classifier)
    # what the weights were trained on
    preprocessing = recipe.preprocessing.with_normalization_of(network.metadata.preprocessing)
    source = read_teacher(
        recipe.teacher,
        preprocessing,
        entry=recipe.teacher_entry,
        weights=recipe.teacher_weights,
        load=_load_backbone,
    )
    teacher = FeatureTeacher(source, name=recipe.teacher, student=preprocessing)
    return TrainJob(
        **vars(replace(settings, data_options={"val_split": val_split})),
        task=FeatureDistillation(teacher, dense_weight=recipe.dense_weight),
        identity={"teacher": teacher.fingerprint},
        workload=PretrainingWorkload,
        model=ProjectedNetwork(network, channels=teacher.channels, levels=teacher.levels),
        published=_without_projections,
        model_name=model,
        data=data,
        preprocessing=preprocessing,
    )


def _load_backbone(name: str, entry: str | None) -> Any:
    return load(name, entry=entry, features_only=True)


def _without_projections(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.network)


@dataclass(frozen=True, kw_only=True, repr=False)
class PretrainingEvaluation(Evaluation):
    """Similarity of a network's features to the features of a teacher, over every image of a set.

    `metrics` has `images` (their number), `pooled` and `dense` (mean cosine similarity of the pooled features and
    of the feature maps), `levels` (cosine similarity of each feature map, by stride), `cosine` (weighted mean of
    `pooled` and `dense`) and `loss` (1 - cosine similarity). Except for `loss`, similarities are in percent.
    """

    @property
    def headline(self) -> str:
        metrics = self.metrics
        return (
            f"cosine similarity {metrics['cosine']:.2f} % (pooled {metrics['pooled']:.2f} %, maps "
            f"{metrics['dense']:.2f} %) on {counted(metrics['images'], 'image')}"
        )


class PretrainingWorkload(ImageWorkload):
    """The workload of pretraining: images without labels."""

    def evaluate(self, network: nn.Module, *, precision: Precision) -> PretrainingEvaluation:
        task, device = self.job.task, self.context.device
        assert isinstance(task, FeatureDistillation)
        totals, images = np.zeros(1 + len(task.teacher.levels)), 0
        for batch in self.val_loader().epoch():
            inputs = self.normalized(batch["images"].to(device, non_blocking=True))
            with torch.no_grad(), autocast(precision, device):
                similarities = network(inputs, *task.teacher(inputs))
            count = len(batch["indices"])
            totals, images = totals + count * similarities.double().cpu().numpy(), images + count
        shares = all_gather((totals, images))
        images = sum(count for _, count in shares)
        means = torch.from_numpy(sum(share for share, _ in shares) / images)
        similarity = float(task.similarity(means))
        levels = zip(task.teacher.levels, means[1:].tolist(), strict=True)
        return PretrainingEvaluation(
            metrics={
                "images": images,
                "cosine": 100 * similarity,
                "pooled": 100 * float(means[0]),
                "dense": 100 * float(means[1:].mean()),
                "loss": 1 - similarity,
                "levels": {f"stride {STRIDES[level.stage]}": 100 * value for level, value in levels},
                "per_class": {},
            }
        )

    def write_report(self, result: TrainResult) -> Path:
        assert isinstance(result.recipe, PretrainingRecipe)
        metrics, teacher = result.metrics, markdown_code(result.recipe.teacher)
        levels = metrics["levels"]
        rows = [
            ["pooled", f"{metrics['pooled']:.2f}"],
            *([name, f"{value:.2f}"] for name, value in levels.items()),
        ]
        headline = (
            f"**Cosine similarity {metrics['cosine']:.2f} %** with the features of {teacher}, on "
            f"{counted(metrics['images'], 'image')} not trained on: {final_weights(result)}. 100 % are the "
            "teacher's features, up to a projection. How much this is worth shows only after fine-tuning."
        )
        start = (
            "## Train from here\n\n```sh\niformer train --data FOLDER --model "
            f"{result.folder} --out runs/tuned\n```"
        )
        features = "## Features\n\n" + markdown_table(["features", "cosine similarity, %"], rows)
        return write_task_report(result, headline, [features, start], loss_label="1 - cosine similarity")
