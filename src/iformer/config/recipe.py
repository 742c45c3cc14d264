"""Recipes: every setting of a training run except its data, its network and its folder.

`Recipe` has the settings that all tasks share. Each task derives its own class, with sections such as `augment`,
in `iformer.tasks.*.config`; `iformer.tasks.registry` maps a task to its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from iformer.config.checking import (
    Config,
    Range,
    ShareBelowOne,
    Text,
    check,
    field_types,
    is_config,
    shown,
    unknown_field,
)
from iformer.config.network import MIN_INPUT_SIZE, Pixels
from iformer.errors import ConfigError

Epochs = Annotated[int, Range(1, 1_000_000)]
Images = Annotated[int, Range(1, 10_000_000)]
Steps = Annotated[int, Range(1, 10**12)]
Rate = Annotated[float, Range(0, 1000)]

RENAMED = {
    "distillation": ("distillation", "loss"),
    "distillation_weight": ("distillation", "weight"),
    "distillation_temperature": ("distillation", "temperature"),
}
"""Field names of earlier versions, each with the field's current section and name. Fields that only moved into a
section are not listed: `hflip` is found as `augment.hflip`."""

RUN_OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')} (in Python {name}=)"
        for name in (
            *("data", "model", "recipe", "out", "resume", "overwrite", "val_split", "classes", "device"),
            *("tensorboard", "tracker"),
        )
    },
    **{name: f"--{name.replace('_', '-')}" for name in ("detector", "segmenter", "dry_run", "find_lr")},
    "strict_data": "--strict-data (in Python strict=)",
    "strict": "--strict-data (in Python strict=)",
    "folds": "--folds (in Python iformer.cross_validate)",
}
"""Settings of a training run that are no fields of its recipe, each with the way to give it."""

ONCE_SHARED: dict[str, Any] = {
    "crop_pct": 0.875,
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "interpolation": "bicubic",
    "vflip": 0.0,
    "rot90": False,
    "rand_augment": None,
    "color_jitter": 0.0,
    "random_erasing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "label_smoothing": 0.1,
    "distillation": "none",
    "teacher": "regnety_160.deit_in1k",
    "distillation_weight": 0.5,
    "distillation_temperature": 3.0,
    "cache": "none",
}
"""Fields that the recipes of all tasks had in earlier versions, with their defaults. A recipe whose task no longer
has such a field may still contain the field with its default, which is then ignored."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """Settings of a training run that all tasks share. Batch sizes count images over all processes."""

    label: ClassVar[str] = "recipe"

    task: str
    """Name of the recipe's task, a key of `iformer.tasks.registry.TASKS`."""

    # length and optimizer
    epochs: Epochs
    """Passes over the training images."""
    batch_size: Images = 64
    """Images of one optimizer step, over all processes and accumulation steps."""
    grad_accum: Annotated[int, Range(1, 100_000)] = 1
    """Forward and backward passes into which one optimizer step is split, to save memory."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """The optimizer. muon needs fewer steps from random weights; adamw is for fine-tuning."""
    lr: Annotated[float, Range(0, 1000, above=True)]
    """Peak learning rate for a batch of `lr_batch` images; scaled linearly to `batch_size`."""
    lr_batch: Images = 256
    """The batch size for which `lr` is given."""
    min_lr: Rate = 1e-6
    """Learning rate at the end of the schedules "cosine" and "poly"; not scaled."""
    max_steps: Steps | None = None
    """Stop after this number of optimizer steps. None: stop after `epochs`."""
    schedule: Literal["cosine", "poly", "step"] = "cosine"
    """Learning rate after the warm-up. cosine: half a cosine from `lr` to `min_lr`. poly: from `lr` to `min_lr` by
    `(1 - step / steps) ** poly_power`. step: multiplied by `step_decay` after each of the `milestones`."""
    poly_power: Annotated[float, Range(0, 100, above=True)] = 0.9
    """Power of the schedule "poly"."""
    milestones: tuple[Epochs, ...] = ()
    """Numbers of finished epochs after which the schedule "step" lowers the learning rate."""
    step_decay: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    """Factor by which the schedule "step" multiplies the learning rate after each milestone."""
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = 5.0
    """Epochs of linear warm-up from `warmup_lr`, at most half of the run."""
    warmup_steps: Annotated[int, Range(0, 10**12)] | None = None
    """Optimizer steps of the warm-up. None: `warmup_epochs` applies."""
    warmup_lr: Rate = 0.0
    """Learning rate at the start of the warm-up."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Weight decay; not applied to norms, biases and layer scales."""
    layer_decay: Annotated[float, Range(0.01, 1)] = 1.0
    """Factor of the learning rate from each block of the backbone to the block before it. 1: no change."""
    head_lr: Annotated[float, Range(0, 10_000, above=True)] = 1.0
    """Factor of the learning rate of everything that is not the backbone."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """Decay rates of the optimizer's moments."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """Added to the denominator of the optimizer's update."""
    clip_grad: Annotated[float, Range(0, 1e9, above=True)] | None = None
    """Largest norm of the whole gradient. None: not clipped."""
    ema_decay: Annotated[float, Range(0, 1, above=True, below=True)] | None = None
    """Decay of the moving average of the weights. The average is evaluated and saved. None: no average.

    The decay is warmed up as 1 - (1 + step)^(-2/3), so that a short run does not average its random start."""
    drop_path_rate: ShareBelowOne = 0.0
    """Drop rate of stochastic depth in the network's last block; earlier blocks have lower rates."""
    attention: Literal["shma", "hybrid", "chunk_hybrid"] | None = None
    """Attention design for large images (Table 16). None: the network's own."""
    windows: Literal["released", "paper"] | None = None
    """Settings of the attention's windows. None: the released ones if there are any, else the paper's."""
    weights: Text = "none"
    """Where training starts: `none` (random weights), `pretrained` (the released ones) or a checkpoint's name."""
    entry: Text | None = None
    """Which weights of a training script's file to start from, such as `model_ema`. None: the weights
    themselves, or their average if the file holds nothing else."""
    size: Pixels = 224
    """Side of the images, in pixels."""
    size_schedule: tuple[tuple[Annotated[int, Range(0, 1_000_000)], Pixels], ...] = ()
    """Progressive resizing: pairs of an epoch, from 0, and the side in pixels of training images from then on.
    Before the first pair, the side is `size`."""

    # execution
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the computation; auto: bf16 if the processor multiplies it in hardware, else fp32."""
    channels_last: bool = True
    """Store images and weights with the channels last."""
    compile: Literal["auto"] | bool = False
    """Compile the network (and its teacher). auto: on CUDA GPUs only."""
    cuda_graphs: bool = False
    """Launch the passes of a training step as CUDA graphs, with faster batch norms, in place of compilation.
    Experimental; it applies to classifiers on a CUDA GPU, in one process with one pass a step."""
    sync_batch_norm: bool = False
    """Compute batch norm's statistics over the images of all processes instead of each process."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work: ddp keeps the whole network in each process; fsdp keeps a shard, which
    saves memory and costs communication."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of everything random."""
    workers: Literal["auto"] | Annotated[int, Range(0, 1024)] = "auto"
    """Processes that load images, per training process. 0: the training process loads them itself."""
    patience: Epochs | None = None
    """Stop after this number of epochs without a better validation metric. None: train for all `epochs`. A run
    stops only after an evaluation; see `eval_every`."""
    eval_every: Epochs = 1
    """Epochs between evaluations on the validation images; the last epoch is always evaluated."""
    eval_batch_size: Images | None = None
    """Images of one evaluation batch. None: as many as `batch_size`."""
    checkpoint_minutes: Annotated[float, Range(0, 1_000_000, above=True)] = 10.0
    """Minutes between two saved states for `--resume`; each epoch saves one as well."""
    checkpoint_steps: Steps | None = None
    """Optimizer steps between two saved states, in addition to `checkpoint_minutes`. None: no limit in steps."""
    log_every: Steps = 10
    """Optimizer steps between two lines of the log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        divisor = f"a divisor of batch_size ({self.batch_size})"
        check(self.batch_size % self.grad_accum == 0, self, "grad_accum", divisor)
        check(self.peak_lr <= 1000, self, "lr", "a rate that is at most 1000 after scaling to batch_size")
        peak = f"a number from 0 to the peak, {self.peak_lr:g}"
        check(self.min_lr <= self.peak_lr, self, "min_lr", peak)
        check(self.warmup_lr <= self.peak_lr, self, "warmup_lr", peak)
        check(
            (self.schedule == "step") == bool(self.milestones)
            and list(self.milestones) == sorted(set(self.milestones)),
            self,
            "milestones",
            "rising epochs of 1 or more for the schedule 'step', and [] for any other",
        )
        hybrid = self.attention in ("hybrid", "chunk_hybrid")
        check(self.windows is None or hybrid, self, "windows", "null unless attention is hybrid or chunk_hybrid")
        starts = [start for start, _ in self.size_schedule]
        check(
            all(start < self.epochs for start in starts)
            and starts == sorted(set(starts))
            and all(size <= self.size for _, size in self.size_schedule),
            self,
            "size_schedule",
            f"pairs of rising epochs below epochs ({self.epochs}) and sizes from {MIN_INPUT_SIZE} to size "
            f"({self.size}), or [] for one size",
        )
        averaged = "ddp, because ema_decay is set (null turns it off)"
        check(self.parallel == "ddp" or self.ema_decay is None, self, "parallel", averaged)

    @property
    def network_options(self) -> dict[str, Any]:
        """The options of `iformer.models.factory.create_model` that the recipe sets."""
        options = {"attention": self.attention, "windows": self.windows}
        return {
            "drop_path_rate": self.drop_path_rate,
            **{name: value for name, value in options.items() if value is not None},
        }

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up, scaled to the batch."""
        return self.lr * self.batch_size / self.lr_batch

    @property
    def images_per_group(self) -> int:
        """Number of images that are mixed with each other; each forward pass needs a multiple of this number."""
        return 1

    def train_size(self, epoch: int) -> int:
        """Return the side of the training images of an epoch (from 0), in pixels."""
        return next((size for start, size in reversed(self.size_schedule) if start <= epoch), self.size)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Build a recipe from plain data, the inverse of `to_plain`; flat fields of earlier versions are accepted.

        Raises:
            ConfigError: a field is unknown (the message suggests the nearest names), missing or invalid.
        """
        return super().from_plain(cls.nested(plain) if isinstance(plain, Mapping) else plain)

    @classmethod
    def nested(cls, *layers: Mapping[str, Any]) -> dict[str, Any]:
        """Merge mappings of fields, later ones over earlier ones, and move every field into its section.

        `augment.hflip`, `hflip` and `augment: {hflip: …}` are the same field.

        Raises:
            ConfigError: a field does not exist, or is given twice in one mapping.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            seen = set()
            for (section, name), value in cls._fields_of(layer):
                if (section, name) in seen:
                    raise ConfigError(f"{cls.label} has {f'{section}.' if section else ''}{name} twice; keep one")
                seen.add((section, name))
                (merged.setdefault(section, {}) if section else merged)[name] = value
        return merged

    @classmethod
    def _fields_of(cls, plain: Mapping[str, Any]) -> list[tuple[tuple[str, str], Any]]:
        """Return each field of a mapping as ((section, name), value); the section is empty at the top level."""
        sections = cls.sections()
        homes = {name: [("", name)] for name in field_types(cls) if name not in sections}
        full = {f"{section}.{name}": [(section, name)] for section, names in sections.items() for name in names}
        for (home,) in full.values():
            if home not in RENAMED.values():  # a short name stands for the fields of that name in all sections
                homes.setdefault(home[1], []).append(home)
        short = set(homes)
        homes |= full | {old: [home] for old, home in RENAMED.items() if home[0] in sections}
        found: list[tuple[tuple[str, str], Any]] = []
        for name, value in plain.items():
            if name in sections and (isinstance(value, Mapping) or name not in homes):
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{cls.label}.{name} is {shown(value)}; expected a mapping of its fields")
                for inner in value:
                    if inner not in sections[name]:
                        raise unknown_field(f"{cls.label}.{name}", inner, sections[name])
                found += [((name, inner), inner_value) for inner, inner_value in value.items()]
            elif name in homes:
                found += [(home, value) for home in homes[name]]
            elif name not in ONCE_SHARED or value != ONCE_SHARED[name]:
                task = getattr(cls, "task", "")  # the field's default
                known = full if "." in str(name) else short | sections.keys()
                raise unknown_field(
                    f"a recipe for {task}",
                    name,
                    known,
                    options=RUN_OPTIONS,
                    listed_by=f"iformer info --recipe {task}" if task else "",
                )
        return found

    @classmethod
    def sections(cls) -> dict[str, list[str]]:
        """Return the names of the sections, each with the names of its fields."""
        kinds = field_types(cls).items()
        return {name: list(field_types(kind)) for name, kind in kinds if is_config(kind)}
