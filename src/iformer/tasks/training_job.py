"""Build the job of a training run, for every task, from options and from the settings of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from iformer.config.checking import Config, Share, Text
from iformer.config.recipe import Recipe
from iformer.config.variants import list_models
from iformer.errors import ConfigError, UnknownNameError, UserError, WeightsError, counted
from iformer.files import near_paths
from iformer.models.factory import OtherTaskError
from iformer.tasks.interface import TrainModule, Warn
from iformer.tasks.registry import TASKS, NetworkKind, find_task, load_recipe, recipe_of_file, training_option
from iformer.training.distributed import check_no_training, launched_processes
from iformer.training.job import RunSettings, TrainJob
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.trackers import stored_trackers, tracker_names
from iformer.training.schedule import RunLength, recipe_hints

MIN_STEPS, MIN_BATCH = 20, 8
"""Targets when a default recipe is adapted to few images: smallest number of steps per epoch, smallest batch."""

_NOT_PATHS = ("elpv", "none", "pretrained")


@dataclass(frozen=True, kw_only=True)
class StoredRun(Config):
    """Settings in the `config.yaml` of a run, which are the defaults of `--resume`."""

    label: ClassVar[str] = "config"

    task: str = "classify"
    data: Text
    model: Text
    recipe_name: Text
    recipe: dict[str, Any] = field(default_factory=dict)
    val_split: Share | None = None
    classes: tuple[str, ...] | None = None
    fold: tuple[int, int] | None = None
    working_directory: Text | None = None
    """Folder in which the run was started; None in runs of older versions."""

    def locate(self, name: str, folder: Path) -> str:
        """Return the path of a file or folder that the run names by a relative path.

        Args:
            name: the path, or anything else that names data or weights, which is returned as it is.
            folder: the run folder. Runs of early versions do not store the folder that they were started in. Their
                files are searched in the current folder and in those above the run folder.
        """
        if name in _NOT_PATHS or name in list_models() or "://" in name or Path(name).is_absolute():
            return name
        here, above = Path.cwd(), folder.absolute().parents
        start = [Path(self.working_directory)] if self.working_directory else []
        found = next((base for base in (*start, here, *above) if os.path.exists(base / name)), here)
        return name if found == here else str(found / name)

    @classmethod
    def read(cls, folder: Path) -> StoredRun | None:
        """Read the settings from `config.yaml` of a run folder; return None if the folder has no such file.

        Raises:
            UserError: the file is damaged.
        """
        files = RunFolder(folder)
        stored = files.read_config()
        if not stored:
            return None
        try:
            run = cls.from_plain({name: value for name, value in stored.items() if name in cls.__annotations__})
            find_task(run.task)
        except UserError as error:
            raise ConfigError(f"{files.config} is damaged: {error}; give another --out, or --overwrite") from None
        return run


def training_job(
    folder: Path,
    *,
    data: str | None = None,
    model: str | None = None,
    recipe: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str | None] | None = None,
    val_split: float | None = None,
    classes: Sequence[str] | None = None,
    fold: tuple[int, int] | None = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    tensorboard: bool = True,
    trackers: Sequence[str] | None = None,
    warn: Warn = lambda warnings: None,
) -> TrainJob:
    """Prepare a training run: read the recipe and the data, build the network with its starting weights.

    A resumed run keeps its own settings where an argument is None. Nothing is written. For the other arguments
    see `TrainModule.load_job` and `RunSettings`.

    Args:
        folder: the run folder.
        data: name of the data; see `docs/how-to/train.md`.
        model: a model name, or a checkpoint to fine-tune. None: "iformer_t".
        recipe: name or file of a recipe. None: the task's default.
        task: a name of `iformer.tasks.registry.TASKS`. None: the recipe's.
        overrides: fields that replace the recipe's.
        kinds: the kind of network by the option that chooses it, such as `{"detector": "light"}`. The kind
            also chooses the recipe, if none is named.

    Raises:
        UserError: a file or setting of the job does not exist, does not fit or cannot be read.
    """
    check_no_training()
    if is_main_process():  # the other processes may get here when this one has begun to write
        RunFolder(folder).check(resume=resume, overwrite=overwrite)
    before = StoredRun.read(folder) if resume else None
    kind = None
    for option, value in (kinds or {}).items():
        if value is not None:
            task, kind = _kind(option, value, task)
            overrides = {**kind.fields, **(overrides or {})}
    name, fields = _recipe(
        task,
        recipe or (kind.recipe if kind and not before else None),
        overrides or {},
        before,
        folder=folder,
        model=model,
    )
    row = find_task(fields.task)
    if before is not None and recipe is None:
        fields = _located(fields, before, folder, overrides or {})
    data = data or (before.locate(before.data, folder) if before else None)
    if data is None and resume:
        near = "" if os.path.exists(folder) else near_paths(folder)
        raise UserError(f"{folder} holds no run to resume; check --out, or give --data to start one there{near}")
    if data is None:
        raise UserError(f"--data is missing; give {row.data}")
    for flag, given in (("--folds", fold is not None), ("--classes", classes is not None)):
        if given and row.name != "classify":
            raise UserError(
                f"{flag} is only for classifiers, but the recipe {name} is for {row.networks}; leave {flag} out"
            )
    if trackers is None and before is not None:
        trackers = stored_trackers(folder)
    settings = RunSettings(
        data_name=data,
        recipe=fields,
        recipe_name=name,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        classes=tuple(classes) if classes is not None else (before.classes if before else None),
        fold=fold or (before.fold if before else None),
        device=device,
        tensorboard=tensorboard,
        trackers=None if trackers is None else tracker_names(trackers),
    )
    if before is not None:
        if val_split is not None and before.val_split not in (None, val_split):
            started = f"the run in {folder} was started with {before.val_split:g}"
            raise UserError(f"val_split is {val_split:g}, and {started}; leave it out")
        val_split = before.val_split if val_split is None else val_split
    module: TrainModule = row.module("training")
    model = model or (before.locate(before.model, folder) if before else "iformer_t")
    try:
        job = module.load_job(settings, model, val_split=val_split, strict=strict, warn=warn)
    except OtherTaskError as error:
        found = error.weights
        raise WeightsError(
            f"{found.source} holds {found.row.title}, the recipe {name} is for {row.networks}; "
            f"'iformer train {training_option(found)}' trains it further, and "
            "iformer.save(iformer.load(FILE, features_only=True), NEW) in Python writes its backbone for --model"
        ) from None
    chosen = (
        before is not None or name not in row.default_recipes or "batch_size" in fields.nested(overrides or {})
    )
    job = job if chosen else _for_few_images(job, warn)
    steps = max(1, len(job.data.train) // job.recipe.batch_size)
    warn(recipe_hints(job.recipe, RunLength(job.recipe, steps_per_epoch=steps)))
    return job


def _for_few_images(job: TrainJob, warn: Warn) -> TrainJob:
    """Halve the recipe's batch until an epoch has `MIN_STEPS` steps, or the batch is `MIN_BATCH`.

    The learning rate falls too, because it is scaled to the batch. `warn` gets a line about the change.
    """
    recipe, images = job.recipe, len(job.data.train)
    batch = recipe.batch_size
    unit = launched_processes() * recipe.grad_accum * max(2, recipe.images_per_group)  # batch norm needs two
    while images // batch < MIN_STEPS and batch % 2 == 0 and batch // 2 >= MIN_BATCH and batch // 2 % unit == 0:
        batch //= 2
    if batch == recipe.batch_size or recipe.max_steps is not None:
        return job
    peak = recipe.lr * batch / recipe.lr_batch
    adapted = replace(
        recipe,
        batch_size=batch,
        eval_batch_size=recipe.eval_batch_size or recipe.batch_size,
        min_lr=min(recipe.min_lr, peak),
        warmup_lr=min(recipe.warmup_lr, peak),
    )
    warn(
        [
            f"{counted(images, 'training image')}: batches of {batch} instead of {recipe.batch_size}, so that an "
            f"epoch has {counted(max(1, images // batch), 'step')}; --batch-size {recipe.batch_size} keeps them"
        ]
    )
    return replace(job, recipe=adapted)


def _kind(option: str, value: str, task: str | None) -> tuple[str, NetworkKind]:
    """Return the task and the kind of network that an option such as `--detector` chooses."""
    row = next(row for row in TASKS.values() if row.option == option)
    if task not in (None, row.name):
        raise UserError(f"--{option} is for --task {row.name}; leave it out")
    if value not in row.kinds:
        raise UnknownNameError(option, value, row.kinds)
    return row.name, row.kinds[value]


def _located(fields: Recipe, before: StoredRun, folder: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Return a resumed run's recipe in which the paths of weights and teacher are located, unless overridden."""
    given = fields.nested(overrides)
    if "weights" not in given:
        fields = replace(fields, weights=before.locate(fields.weights, folder))
    distillation = vars(fields).get("distillation")
    for name in ("teacher", "teacher_weights"):  # of a pretraining
        if vars(fields).get(name) is not None and name not in given:
            located: dict[str, Any] = {name: before.locate(vars(fields)[name], folder)}
            fields = replace(fields, **located)
    if distillation is not None and distillation.loss != "none" and "teacher" not in given.get("distillation", {}):
        teacher = before.locate(distillation.teacher, folder)
        fields = replace(fields, distillation=replace(distillation, teacher=teacher))  # type: ignore[call-arg]
    return fields


def is_main_process() -> bool:
    """Return whether this is the only process, or rank 0 of the processes that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def _recipe(
    task: str | None,
    recipe: str | None,
    overrides: Mapping[str, Any],
    before: StoredRun | None,
    *,
    folder: Path,
    model: str | None,
) -> tuple[str, Recipe]:
    """Return name and settings of the recipe: the named one, else the resumed run's, else the task's default."""
    default = find_task(task or "classify").default_recipe
    if before is not None and recipe is None:
        name, kind = before.recipe_name, find_task(before.task).recipe_class
        stored = before.recipe
        fields = recipe_of_file(
            RunFolder(folder).config, lambda given: kind.from_plain(kind.nested(stored, given)), overrides
        )
    else:
        name = recipe or default
        fields = load_recipe(name, overrides, model=model)
    if task is not None and fields.task != task:
        raise UserError(f"--task is {task}, the recipe {name} is for {fields.task}; give one that fits")
    if "teacher" in fields.nested(overrides).get("distillation", {}):
        distillation = vars(fields)["distillation"]
        if distillation.loss == "none":  # naming a teacher is enough
            fields = replace(fields, distillation=replace(distillation, loss="hard"))  # type: ignore[call-arg]
    return name, fields
