"""Recipes of detection and segmentation: the paper's schedules, and fields of other tasks."""

from __future__ import annotations

import re

import pytest

from iformer.config.variants import network_config
from iformer.errors import ConfigError, UnknownNameError
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.registry import find_task, load_recipe
from iformer.tasks.segmentation.config import SegmentationRecipe

BACKBONE = network_config("iformer_t").with_options(num_classes=0)


def test_coco_1x_is_the_paper_s_schedule() -> None:
    recipe = load_recipe("coco-1x")
    assert isinstance(recipe, DetectionRecipe)
    assert (recipe.epochs, recipe.batch_size, recipe.peak_lr, recipe.weight_decay) == (12, 16, 2e-4, 0.05)
    assert (recipe.schedule, recipe.milestones, recipe.step_decay) == ("step", (8, 11), 0.1)
    assert (recipe.warmup_steps, recipe.warmup_lr) == (500, 1e-6)
    config = recipe.detector_config(BACKBONE, num_classes=80)
    assert (config.size, config.max_size, config.fpn_channels, config.masks) == (800, 1333, 256, True)
    assert (recipe.freeze, recipe.augment.hflip) == ("norms", 0.5)


def test_ade20k_40k_is_the_paper_s_schedule() -> None:
    recipe = load_recipe("ade20k-40k")
    assert isinstance(recipe, SegmentationRecipe)
    assert (recipe.max_steps, recipe.batch_size, recipe.peak_lr, recipe.weight_decay) == (40_000, 32, 2e-4, 1e-4)
    assert (recipe.schedule, recipe.poly_power, recipe.min_lr) == ("poly", 0.9, 1e-6)
    assert recipe.epochs * (20_210 // 32) >= 40_000
    config = recipe.segmenter_config(BACKBONE, num_classes=150)
    assert (config.size, config.max_size, config.fpn_channels, config.head_channels) == (512, 2048, 256, 128)
    assert (recipe.augment.resize, recipe.augment.photometric, recipe.freeze) == ((0.5, 2.0), True, "norms")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("coco-1x", "mixup_alpha", 0.2),
        ("coco-1x", "size_schedule", [[0, 320]]),
        ("coco-1x", "max_size", 600),
        ("coco-1x", "freeze", "some"),
        ("coco-1x", "rois", 0),
        ("coco-1x", "attention", "windows"),
        ("coco-1x", "windows", "printed"),
        ("coco-1x", "fpn_channels", 0),
        ("coco-1x", "task", "segment"),
        ("ade20k-40k", "label_smoothing", 0.2),
        ("ade20k-40k", "segmenter.head_channels", 100),
        ("ade20k-40k", "augment.photometric", 3),
        ("coco-1x", "detector.rois", 0),
        ("ade20k-40k", "resize", [2.0, 0.5]),
        ("ade20k-40k", "head_channels", 100),
        ("ade20k-40k", "dropout", 1.0),
        ("ade20k-40k", "color_jitter", 0.2),
    ],
)
def test_invalid_field_is_named(name: str, field: str, value: object) -> None:
    kind = type(load_recipe(name))
    with pytest.raises(ConfigError, match=re.escape(field)):
        kind.from_plain(kind.nested(load_recipe(name).to_plain(), {field: value}))


def test_windows_need_a_design_that_has_them() -> None:
    with pytest.raises(ConfigError, match="windows"):
        load_recipe("coco-1x", {"attention": "shma", "windows": "paper"})
    recipe = load_recipe("coco-1x", {"windows": "paper"})
    assert isinstance(recipe, DetectionRecipe)
    options = {"drop_path_rate": 0.0, "attention": "hybrid", "windows": "paper"}
    assert recipe.network_options == options


def test_fields_of_another_task_are_unknown() -> None:
    with pytest.raises(ConfigError, match="no field 'rois'"):
        load_recipe("finetune", {"rois": 5})
    with pytest.raises(ConfigError, match="no field 'rois'"):
        load_recipe("segmentation", {"rois": 5})
    assert find_task("classify").recipe_class is ClassificationRecipe
    with pytest.raises(UnknownNameError, match=r"task 'detection'.*did you mean detect"):
        find_task("detection")
