"""Recipes: every setting of a training run that is not its data, its network or its folder.

A recipe is a YAML file of `Recipe` fields; those in `config/recipes` are known by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from iformer.config.augmentation import AugmentConfig
from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.network import MIN_INPUT_SIZE
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import DISTILLED_SUFFIX
from iformer.errors import ConfigError, UnknownNameError

DEFAULT_RECIPES = {"classify": "finetune", "detect": "detection", "segment": "segmentation"}
"""For each task, the recipe that is taken where none is named."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run. Batch sizes count images over all processes."""

    task: Literal["classify"] = "classify"
    """What the recipe is for; `iformer.config.dense_recipe` has those for the other tasks."""

    # length and optimizer
    epochs: int
    batch_size: int = 64
    """Images of one optimizer step, over all processes and accumulation steps."""
    grad_accum: int = 1
    """Forward and backward passes that one optimizer step is cut into, to save memory."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon learns in fewer steps from random weights; fine-tuning and the paper's recipes are adamw's."""
    lr: float
    """Peak learning rate for a batch of `lr_batch` images; it is scaled linearly to `batch_size`."""
    lr_batch: int = 256
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine or polynomial, not scaled."""
    max_steps: int | None = None
    """The run ends after so many optimizer steps, wherever in an epoch; nothing: after `epochs`."""
    schedule: Literal["cosine", "poly", "step"] = "cosine"
    """After the warm-up: half a cosine to `min_lr`; `(1 - step / steps) ** poly_power` to `min_lr`; or times
    `step_decay` after each of the `milestones`."""
    poly_power: float = 0.9
    milestones: tuple[int, ...] = ()
    """Epochs, counted as done, after which the schedule "step" lowers the learning rate."""
    step_decay: float = 0.1
    warmup_epochs: float = 5.0
    """Linear warm-up from `warmup_lr`, at most over half of the run; the cosine begins where it ends."""
    warmup_steps: int | None = None
    """The warm-up in optimizer steps; nothing: `warmup_epochs`."""
    warmup_lr: float = 0.0
    weight_decay: float = 0.05
    """Not applied to norms, biases and layer scales."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float | None = None
    """Largest norm of the whole gradient; nothing: not clipped."""
    ema_decay: float | None = None
    """Decay of the running average of the weights that is evaluated and kept; nothing: the weights themselves.

    It is warmed up as 1 - (1 + step)^(-2/3), so that a short run does not average its random start."""
    drop_path_rate: float = 0.0
    attention: Literal["shma", "hybrid", "chunk_hybrid"] | None = None
    """The attention design for large images (Table 16); nothing: as the network has it."""
    windows: Literal["released", "paper"] | None = None
    """Which settings its windows have; nothing: the released ones where there are any, else the paper's."""
    weights: str = "none"
    """What training starts from: `none` (random), `pretrained` (the released weights) or a checkpoint file."""

    # images
    size: int = 224
    """Side of the square that the trained network takes, in pixels; evaluation is at this size."""
    size_schedule: tuple[tuple[int, int], ...] = ()
    """Progressive resizing: pairs of (first epoch, counted from 0; training size), `size` before the first."""
    crop_pct: float = 0.875
    """Evaluation resizes the shorter side to `size / crop_pct`, then cuts out the centre."""
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    hflip: float = 0.5
    vflip: float = 0.0
    rot90: bool = False
    rand_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    """`scale` to `random_erasing`: see `iformer.config.augmentation.AugmentConfig`."""
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    """Of the beta distributions that mixing draws from; 0: off."""
    mixup_prob: float = 1.0
    """Share of the batches that are mixed, where mixup or cutmix is on."""
    mixup_switch_prob: float = 0.5
    """Share of cutmix among the mixed batches, where both are on."""
    label_smoothing: float = 0.1

    # a teacher
    distillation: Literal["none", "hard", "soft"] = "none"
    """What a second head learns from a teacher: its answer (hard) or its probabilities (soft). DeiT, section 4."""
    teacher: str = "regnety_160.deit_in1k"
    """A timm network with its released weights, one of ours by name, or a checkpoint file."""
    distillation_weight: float = 0.5
    """Share of the teacher's loss; the labels have the rest."""
    distillation_temperature: float = 3.0
    """Of the soft loss; no other reads it."""

    # how it is run
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor multiplies it in hardware, else fp32."""
    channels_last: bool = True
    compile: Literal["auto"] | bool = False
    """Compile the network (and its teacher); auto: on CUDA GPUs, where it pays."""
    sync_batch_norm: bool = False
    """Batch norm's statistics over the images of all processes instead of each one's own."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: ddp keeps the whole network on each, fsdp a part of it, which costs exchange and
    saves memory."""
    seed: int = 0
    workers: Literal["auto"] | int = "auto"
    """Processes that load images, for each training process; 0: none beside it."""
    cache: Literal["none", "ram"] = "none"
    """ram: decode each image once and keep it."""
    eval_every: int = 1
    """Epochs between evaluations on the validation images; the last epoch is always evaluated."""
    eval_batch_size: int | None = None
    """nothing: `batch_size`."""
    checkpoint_minutes: float = 10.0
    """Time between two saved states from which `--resume` continues; one is saved after each epoch anyway."""
    checkpoint_steps: int | None = None
    """Optimizer steps between two saved states, beside `checkpoint_minutes`."""
    log_every: int = 10
    """Optimizer steps between two lines in the log."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(not isinstance(value, float) or math.isfinite(value), self, field.name, "a finite number")
        for name in ("epochs", "batch_size", "grad_accum", "lr_batch", "eval_every", "log_every"):
            check(getattr(self, name) >= 1, self, name, "a whole number of 1 or more")
        for name in ("eval_batch_size", "checkpoint_steps", "max_steps"):
            value = getattr(self, name)
            check(value is None or value >= 1, self, name, "nothing or a whole number of 1 or more")
        check(
            self.batch_size % self.grad_accum == 0,
            self,
            "grad_accum",
            f"a divisor of batch_size ({self.batch_size})",
        )
        check(self.lr > 0, self, "lr", "a number above 0")
        check(0 <= self.min_lr <= self.peak_lr, self, "min_lr", f"a number from 0 to the peak, {self.peak_lr:g}")
        check(
            0 <= self.warmup_lr <= self.peak_lr,
            self,
            "warmup_lr",
            f"a number from 0 to the peak, {self.peak_lr:g}",
        )
        check(self.warmup_epochs >= 0, self, "warmup_epochs", "a number of 0 or more")
        check(
            self.warmup_steps is None or self.warmup_steps >= 0,
            self,
            "warmup_steps",
            "nothing or a whole number of 0 or more",
        )
        check(self.poly_power > 0, self, "poly_power", "a number above 0")
        check(0 < self.step_decay < 1, self, "step_decay", "a number between 0 and 1")
        check(
            (self.schedule == "step") == bool(self.milestones)
            and list(self.milestones) == sorted(set(self.milestones))
            and all(milestone >= 1 for milestone in self.milestones),
            self,
            "milestones",
            "rising epochs of 1 or more for the schedule 'step', and none for another one",
        )
        check(self.weight_decay >= 0, self, "weight_decay", "a number of 0 or more")
        check(all(0 <= beta < 1 for beta in self.betas), self, "betas", "two numbers from 0 up to, not with, 1")
        check(self.eps > 0, self, "eps", "a number above 0")
        check(self.clip_grad is None or self.clip_grad > 0, self, "clip_grad", "nothing or a number above 0")
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            self,
            "ema_decay",
            "nothing or a number between 0 and 1",
        )
        check(0 <= self.drop_path_rate < 1, self, "drop_path_rate", "a number from 0 up to, not with, 1")
        check(
            self.windows is None or self.attention in ("hybrid", "chunk_hybrid"),
            self,
            "windows",
            "nothing where attention is not hybrid or chunk_hybrid",
        )
        check(self.weights != "", self, "weights", "none, pretrained or a checkpoint file")
        check(self.size >= MIN_INPUT_SIZE, self, "size", f"{MIN_INPUT_SIZE} pixels or more")
        starts = [start for start, _ in self.size_schedule]
        check(
            all(0 <= start < self.epochs for start in starts)
            and starts == sorted(set(starts))
            and all(MIN_INPUT_SIZE <= size <= self.size for _, size in self.size_schedule),
            self,
            "size_schedule",
            f"pairs of rising epochs below epochs ({self.epochs}) and sizes from {MIN_INPUT_SIZE} to size "
            f"({self.size}), or [] for one size",
        )
        for name in ("mixup_alpha", "cutmix_alpha"):
            check(getattr(self, name) >= 0, self, name, "a number of 0 or more")
        for name in ("mixup_prob", "mixup_switch_prob"):
            check(0 <= getattr(self, name) <= 1, self, name, "a probability, 0 to 1")
        check(
            not self.mixes or (self.batch_size // self.grad_accum) % 2 == 0,
            self,
            "batch_size",
            "an even number of images in each pass, because mixup and cutmix mix them in pairs",
        )
        check(0 <= self.label_smoothing < 1, self, "label_smoothing", "a number from 0 up to, not with, 1")
        check(self.teacher != "", self, "teacher", "a network's name or a checkpoint file")
        check(0 <= self.distillation_weight <= 1, self, "distillation_weight", "a share, 0 to 1")
        check(self.distillation_temperature > 0, self, "distillation_temperature", "a number above 0")
        check(self.workers == "auto" or self.workers >= 0, self, "workers", "auto or a whole number of 0 or more")
        check(
            self.parallel == "ddp" or self.ema_decay is None,
            self,
            "parallel",
            "ddp where there is a running average of the weights (ema_decay)",
        )
        check(0 <= self.seed < 2**32, self, "seed", "a whole number from 0 to 4294967295")
        check(self.checkpoint_minutes > 0, self, "checkpoint_minutes", "a number above 0")
        for built in (self.augmentation, self.preprocessing):
            assert built is not None  # building them checks the fields they share with the recipe

    @property
    def network_options(self) -> dict[str, Any]:
        """What the recipe asks of the network, as options of `iformer.models.factory.create_model`."""
        asked = {"attention": self.attention, "windows": self.windows}
        return {
            "drop_path_rate": self.drop_path_rate,
            **{name: value for name, value in asked.items() if value is not None},
        }

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up, scaled to the batch."""
        return self.lr * self.batch_size / self.lr_batch

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def augmentation(self) -> AugmentConfig:
        """The recipe's fields about random changes of training images."""
        names = [field.name for field in dataclasses.fields(AugmentConfig)]
        return AugmentConfig(**{name: getattr(self, name) for name in names})

    @property
    def preprocessing(self) -> Preprocessing:
        """What evaluation, prediction and export do with an image."""
        interpolation = "bicubic" if self.interpolation == "random" else self.interpolation
        return Preprocessing(size=(self.size, self.size), crop_pct=self.crop_pct, interpolation=interpolation)

    def train_size(self, epoch: int) -> int:
        """Side of the training images of an epoch, counted from 0."""
        sizes = [size for start, size in self.size_schedule if start <= epoch]
        return sizes[-1] if sizes else self.size

    def to_plain(self) -> dict[str, Any]:
        """A dict of plain values for YAML and JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`.

        Raises:
            ConfigError: a field is unknown (the nearest names are suggested), missing or invalid.
        """
        if isinstance(plain, Mapping):
            cls.check_field_names(plain)
        texts = ("weights", "rand_augment", "teacher")
        return from_plain(cls, {name: value if name in texts else _number(value) for name, value in plain.items()})

    @classmethod
    def check_field_names(cls, fields: Mapping[str, Any]) -> None:
        """Raise `ConfigError` with the nearest names if there is no such field."""
        known = sorted(field.name for field in dataclasses.fields(cls))
        for name in fields:
            if name not in known:
                nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"its fields are {', '.join(known)}"
                raise ConfigError(f"a recipe has no field '{name}'; {hint}")


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load_recipe(
    name_or_path: str | Path, overrides: Mapping[str, Any] | None = None, *, model: str | None = None
) -> Recipe:
    """A recipe by name or from a YAML file, with some fields replaced; the class is that of its task.

    Args:
        name_or_path: see `list_recipes`, or a file.
        overrides: fields that replace the recipe's.
        model: the network that is to be trained: where the recipe has a `by_model` mapping from networks to
            fields, those of this network count, of its distilled form too.

    Raises:
        UnknownNameError: neither a known name nor a file; the message suggests the nearest names.
        ConfigError: the file is no YAML mapping, or a field is unknown or invalid.
    """
    fields = _read(str(name_or_path))
    by_model = fields.pop("by_model", {})
    if not isinstance(by_model, dict) or not all(isinstance(own, dict) for own in by_model.values()):
        raise ConfigError(f"recipe {name_or_path}: by_model is no mapping of networks to fields")
    task = {**fields, **(overrides or {})}.get("task", "classify")
    for own in by_model.values():
        recipe_class(task).check_field_names(own)
    own = by_model.get((model or "").removesuffix(DISTILLED_SUFFIX), {})
    return recipe_class(task).from_plain({**fields, **own, **(overrides or {})})


def recipe_class(task: str) -> type[Recipe]:
    """The class of a task's recipes.

    Raises:
        UnknownNameError: no such task.
    """
    from iformer.config.dense_recipe import DetectionRecipe, SegmentationRecipe  # they derive from Recipe

    classes: dict[str, type[Recipe]] = {
        "classify": Recipe,
        "detect": DetectionRecipe,
        "segment": SegmentationRecipe,
    }
    if task not in classes:
        raise UnknownNameError("task", str(task), classes)
    return classes[task]


def parse_override(text: str) -> tuple[str, Any]:
    """`field=value` of a command line as the field's name and its value, read as YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set takes field=value; got '{text}'")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {name.strip()}: '{value}' is not a value that YAML can read") from None


def _folder() -> Any:
    return resources.files("iformer.config") / "recipes"


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in list_recipes():
        text = (_folder() / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    elif Path(name_or_path).suffix in (".yaml", ".yml"):
        raise ConfigError(f"recipe {name_or_path}: no such file")
    else:
        raise UnknownNameError("recipe", name_or_path, list_recipes())
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"recipe {name_or_path} is no mapping of fields to values")
    return fields


def _number(value: Any) -> Any:
    """`1e-6`, which YAML 1.1 reads as text for want of a dot, as the number it is; lists are searched too."""
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
