"""The table of tasks, one row each. Importing this module loads no torch.

A new task is a folder next to this file, a row here, a recipe in `iformer.config.recipes`, a row in
`iformer.models.weights.header` for checkpoints, and an entry in the import contracts of `pyproject.toml`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from iformer.config.checking import shown
from iformer.config.recipe import Recipe
from iformer.config.variants import DISTILLED_SUFFIX
from iformer.errors import ConfigError, UnknownNameError, UserError

if TYPE_CHECKING:
    from iformer.models.weights.checkpoint import Weights


@dataclass(frozen=True, kw_only=True)
class NetworkKind:
    """A kind of network of a task, such as light detectors."""

    recipe: str
    """Name of the recipe that is used if none is given."""
    fields: Mapping[str, Any]
    """The recipe fields that select this kind."""


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A task: its names, and the folder that implements it."""

    name: str
    """The value of `--task`, and of `task` in recipes and checkpoints."""
    package: str
    """Name of the package below `iformer.tasks` that implements the task."""
    recipe: str
    """Name of the recipe class, in the module `config` of the folder."""
    default_recipe: str
    """Name of the recipe that is used if none is given."""
    metric: str
    """Key of the headline metric, in percent; larger is better."""
    metric_label: str
    """The headline metric as it is printed."""
    networks: str
    """Plural noun for networks of the task, in messages."""
    data: str
    """Data that `--data` accepts, for help and error messages."""
    multi_label_metric: tuple[str, str] | None = None
    """Key and printed form of the headline metric of multi-label networks. None: there are no such networks."""
    verb: str = "train"
    """The verb that trains networks of the task."""
    pipeline_tag: str = ""
    """Name of the task on the Hugging Face hub; empty if it has none."""
    option: str = ""
    """Name of the option of `train` that chooses the kind of network; empty if there is one kind."""
    kinds: Mapping[str, NetworkKind] = field(default_factory=dict)
    """The values of `option`, with the kind of network that each selects."""

    def headline(self, *, multi_label: bool = False) -> tuple[str, str]:
        """Return the key of the headline metric and the metric as it is printed."""
        return (multi_label and self.multi_label_metric) or (self.metric, self.metric_label)

    def module(self, name: str) -> ModuleType:
        """Import a module of the task's folder.

        Args:
            name: `config`, `training`, `evaluate`, `predict`, `export` or another file of the folder.
        """
        return importlib.import_module(f"iformer.tasks.{self.package}.{name}")

    @property
    def default_recipes(self) -> set[str]:
        """Names of the recipes that are used if none is given, for each kind of network."""
        return {self.default_recipe, *(kind.recipe for kind in self.kinds.values())}

    @property
    def recipe_class(self) -> type[Recipe]:
        """The class of the task's recipes."""
        found: type[Recipe] = getattr(self.module("config"), self.recipe)
        return found


TASKS = {
    row.name: row
    for row in (
        TaskRow(
            name="classify",
            package="classification",
            recipe="ClassificationRecipe",
            default_recipe="finetune",
            metric="top1",
            metric_label="top-1",
            multi_label_metric=("map", "mAP"),
            networks="classifiers",
            pipeline_tag="image-classification",
            data="a folder with one sub-folder per class (also in train/ and val/), a zip of them, a table "
            "(.csv, .tsv, .parquet), tar shards, hfds/NAME or elpv",
        ),
        TaskRow(
            name="detect",
            package="detection",
            recipe="DetectionRecipe",
            default_recipe="detection-light",
            metric="box_ap",
            metric_label="box AP",
            networks="detectors",
            pipeline_tag="object-detection",
            data="a folder with images and annotations: COCO, YOLO (data.yaml), Pascal VOC or LabelMe",
            option="detector",
            kinds={
                "light": NetworkKind(recipe="detection-light", fields={"network": "light"}),
                "mask-rcnn": NetworkKind(recipe="detection", fields={"network": "rcnn", "detector.masks": True}),
                "faster-rcnn": NetworkKind(
                    recipe="detection", fields={"network": "rcnn", "detector.masks": False}
                ),
            },
        ),
        TaskRow(
            name="segment",
            package="segmentation",
            recipe="SegmentationRecipe",
            default_recipe="segmentation-light",
            metric="miou",
            metric_label="mIoU",
            networks="segmenters",
            pipeline_tag="image-segmentation",
            data="a folder with images and masks",
            option="segmenter",
            kinds={
                "light": NetworkKind(recipe="segmentation-light", fields={"network": "light"}),
                "semantic-fpn": NetworkKind(recipe="segmentation", fields={"network": "semantic-fpn"}),
            },
        ),
        TaskRow(
            name="pretrain",
            package="classification.pretraining",
            recipe="PretrainingRecipe",
            default_recipe="pretrain",
            metric="cosine",
            metric_label="cosine similarity",
            networks="backbones",
            verb="pretrain",
            data="a folder of images, at any depth, or elpv",
        ),
    )
}


def find_task(name: str) -> TaskRow:
    """Return the row of a task.

    Raises:
        UnknownNameError: there is no such task; the message suggests the nearest names.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise UnknownNameError("task", name if isinstance(name, str) else shown(name), TASKS)
    return TASKS[name]


def training_option(weights: Weights) -> str:
    """Return the option of `iformer train` that trains such a network further, such as `--detector light`."""
    row, light = find_task(weights.task), weights.row.key == "light_network"
    for name, kind in row.kinds.items():
        masks = kind.fields.get("detector.masks")
        same_masks = masks is None or masks == getattr(weights.config, "masks", None)
        if (kind.fields["network"] == "light") == light and same_masks:
            return f"--{row.option} {name}"
    return f"--task {row.name}"


def load_recipe(
    name_or_path: str | Path, overrides: Mapping[str, Any] | None = None, *, model: str | None = None
) -> Recipe:
    """Load a recipe by name or from a YAML file and replace some of its fields.

    Args:
        name_or_path: a name of `iformer.config.recipe_files.list_recipes`, or the path of a YAML file.
        overrides: fields that replace the recipe's: `augment.hflip`, or `hflip` for short.
        model: name of the network to be trained. A recipe may have a mapping `by_model` from networks to fields;
            the fields of this network replace the recipe's. A distilled form gets the fields of its plain form.

    Returns:
        An instance of the recipe class of the recipe's task.

    Raises:
        UnknownNameError: neither a known name nor a file; the message suggests the nearest names.
        ConfigError: the file is not a YAML mapping, or a field is unknown, missing or invalid.
    """
    from iformer.config.recipe_files import read_recipe  # deferred: `iformer --help` needs no YAML

    fields, by_model = read_recipe(name_or_path)

    def build(overrides: Mapping[str, Any]) -> Recipe:
        kind = find_task({"task": "classify", **fields, **overrides}["task"]).recipe_class
        for own in by_model.values():
            kind.nested(own)  # a mistake is reported whichever network is trained
        own = by_model.get((model or "").removesuffix(DISTILLED_SUFFIX), {})
        return kind.from_plain(kind.nested(fields, own, overrides))

    return recipe_of_file(name_or_path, build, overrides or {})


def recipe_of_file(
    source: str | Path, build: Callable[[Mapping[str, Any]], Recipe], overrides: Mapping[str, Any]
) -> Recipe:
    """Build a recipe from a file and `overrides`; an error in the file's own fields names the file.

    Raises:
        UserError: `build` failed. The message begins with `source`, except if the overrides cause the error.
    """
    try:
        return build(overrides)
    except UserError as error:
        if overrides:
            try:
                build({})
            except UserError as alone:
                if str(alone) != str(error):
                    raise error from None
            else:
                raise
        raise ConfigError(f"{source}: {error}") from None
