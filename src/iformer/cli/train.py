"""`iformer train`: train or fine-tune a network for one of the tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import AttentionOption, DeviceOption, WindowsOption
from iformer.cli.output import DebugOption, JsonOption, note, print_json_line

if TYPE_CHECKING:
    from iformer.config.recipe import Recipe
    from iformer.training.job import RunSettings, TrainJob
    from iformer.training.records.results import TrainResult

_WARNINGS_SHOWN = 20
_HEADLINES = {"classify": ("top1", "top-1"), "detect": ("box_ap", "box AP"), "segment": ("miou", "mIoU")}
"""For each task, the metric that is told first and what it is called."""
_DATA = {
    "classify": "a folder with one sub-folder a class, or elpv",
    "detect": "a folder with images and COCO annotations",
    "segment": "a folder with images and masks",
}


def train(
    out: Annotated[Path, typer.Option(help="The run's folder: networks, log, report.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="classify: a folder with one sub-folder a class (also in train/ and val/), tar shards (a folder "
            "or URL), hfds/NAME, or elpv; detect: with COCO annotations; segment: with images and masks."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A network's name, or a checkpoint to fine-tune.", show_default="iformer_t"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name, or a YAML file.",
            show_default="finetune, detection or segmentation, by the task",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="What training starts from: none, pretrained (released weights) or a file."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the network is to do: classify, detect or segment.",
            show_default="that of the recipe, or classify",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; its settings need not be given again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, time a few steps, estimate the run; keep nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that is in --out.")] = False,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of each class to validate on, where the data has no part for it.", show_default="0.2"
        ),
    ] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read, instead of skipping it.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Recipe: passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Recipe: images of a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Recipe: peak learning rate for lr_batch images.")] = None,
    size: Annotated[int | None, typer.Option(help="Recipe: side of the images, in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Recipe: seed of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="Recipe: auto, fp32, bf16 or fp16.")] = None,
    attention: AttentionOption = None,
    windows: WindowsOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Learn from a network too: timm's by name, ours by name, or a checkpoint trained on this data."
        ),
    ] = None,
    distillation: Annotated[
        str | None, typer.Option(help="Recipe: what is learnt from the teacher: hard or soft.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe; may be given often."),
    ] = None,
    device: DeviceOption = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's files.")] = True,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train or fine-tune a network on your images; prints where the report is."""
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "size": size,
        "seed": seed,
        "precision": precision,
        "weights": weights,
        "attention": attention,
        "windows": windows,
        "teacher": teacher,
        "distillation": distillation,
    }
    job = _job(
        out=out,
        data=data,
        model=model,
        recipe=recipe,
        task=task,
        resume=resume,
        overwrite=overwrite,
        val_split=val_split,
        strict_data=strict_data,
        overrides={name: value for name, value in options.items() if value is not None},
        assignments=set_ or [],
        device=device,
        tensorboard=tensorboard,
    )
    if dry_run:
        if job.recipe.task != "classify":
            from iformer.errors import UserError

            raise UserError("--dry-run is for --task classify; leave it out")
        _print_dry_run(job, json=json)
        return
    from iformer.training.loop import train as run

    try:
        result = run(job)
    except KeyboardInterrupt:
        note(f"stopped; --resume continues the run in {out}")
        raise
    if _is_main_process():
        _print_result(result, json=json)


def _is_main_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def _job(
    *,
    out: Path,
    data: str | None,
    model: str | None,
    recipe: str | None,
    task: str | None,
    resume: bool,
    overwrite: bool,
    val_split: float | None,
    strict_data: bool,
    overrides: dict[str, Any],
    assignments: list[str],
    device: str,
    tensorboard: bool,
) -> TrainJob:
    """The run that a command line describes; a resumed run's own settings stand where it says nothing."""
    from iformer.config.recipe_files import merge_overrides
    from iformer.errors import UserError
    from iformer.training.job import RunSettings
    from iformer.training.records.run_folder import RunFolder

    if _is_main_process():  # the others may look when it has begun to write
        RunFolder(out).check(resume=resume, overwrite=overwrite)
    before = RunFolder(out).read_config() if resume else {}
    overrides = merge_overrides(assignments, overrides)
    recipe_name, settings = _recipe(task, recipe, overrides, before, model=model)
    data = data or before.get("data")
    if data is None:
        raise UserError(f"--data is missing; give {_DATA[settings.task]}")
    run = RunSettings(
        data_name=data,
        recipe=settings,
        recipe_name=recipe_name,
        folder=out,
        resume=resume,
        overwrite=overwrite,
        device=device,
        tensorboard=tensorboard,
    )
    model = model or str(before.get("model", "iformer_t"))
    if settings.task == "classify":
        share = val_split if val_split is not None else float(before.get("val_split", 0.2))
        return _classification(run, model, val_split=share, strict=strict_data)
    if val_split is not None:
        raise UserError("--val-split is for classification; give the validation images in the data")
    make = _detection if settings.task == "detect" else _segmentation
    return make(run, model, strict=strict_data)


def _recipe(
    task: str | None,
    recipe: str | None,
    overrides: dict[str, Any],
    before: dict[str, Any],
    *,
    model: str | None,
) -> tuple[str, Recipe]:
    """Name and settings of the recipe that is named, or was before, or is the task's default."""
    from iformer.errors import UserError
    from iformer.tasks.registry import find_task, load_recipe

    row = find_task(task or "classify")
    if before and recipe is None:
        name = str(before["recipe_name"])
        kind = find_task(before["task"]).recipe_class
        settings = kind.from_plain(kind.nested(before["recipe"], overrides))
    else:
        name = recipe or row.default_recipe
        settings = load_recipe(name, overrides, model=model)
    if task is not None and settings.task != task:
        raise UserError(f"--task is {task}, the recipe {name} is for {settings.task}; give one that fits")
    distillation = getattr(settings, "distillation", None)
    named = {"teacher", "distillation.teacher"} & overrides.keys()
    if named and distillation is not None and distillation.loss == "none":  # one option is enough
        settings = replace(settings, distillation=replace(distillation, loss="hard"))  # type: ignore[call-arg]
    return name, settings


def _classification(settings: RunSettings, model: str, *, val_split: float, strict: bool) -> TrainJob:
    from iformer.data.sources import load_data
    from iformer.tasks.classification.training import classification_job

    split = load_data(settings.data_name, val_split=val_split, strict=strict)
    _note_data(split.warnings)
    return classification_job(split, replace(settings, data_options={"val_split": val_split}), model=model)


def _detection(settings: RunSettings, model: str, *, strict: bool) -> TrainJob:
    from iformer.data.sources.coco import load_detection
    from iformer.tasks.detection.training import detection_job

    split = load_detection(settings.data_name, strict=strict)
    _note_data(split.warnings)
    return detection_job(split, settings, model=model)


def _segmentation(settings: RunSettings, model: str, *, strict: bool) -> TrainJob:
    from iformer.data.sources.masks import load_semantic
    from iformer.tasks.segmentation.training import segmentation_job

    split = load_semantic(settings.data_name, strict=strict)
    _note_data(split.warnings)
    return segmentation_job(split, settings, model=model)


def _note_data(warnings: Sequence[str]) -> None:
    if _is_main_process():
        note_warnings(warnings)


def note_warnings(warnings: Sequence[str]) -> None:
    """Say on stderr what is odd about the data; of very much, the beginning."""
    for problem in warnings[:_WARNINGS_SHOWN]:
        note(f"note: {problem}")
    if len(warnings) > _WARNINGS_SHOWN:
        note(f"note: and {len(warnings) - _WARNINGS_SHOWN} more")


def _print_dry_run(job: TrainJob, *, json: bool) -> None:
    from iformer.training.dry_run import dry_run

    found = dry_run(job)
    if not _is_main_process():
        return
    if json:
        print_json_line(found.to_plain())
        return
    teacher = f", teacher {found.teacher_gmacs:.2f} GMACs" if found.teacher_gmacs else ""
    print(f"network  {found.model}: {found.parameters / 1e6:.2f} M parameters, {found.gmacs:.2f} GMACs{teacher}")
    print(
        f"data     {found.data}: {found.train_images:,} images to train on, {found.val_images:,} to validate; read"
    )
    print(f"run      recipe {found.recipe}: {found.steps:,} steps of {found.batch_size} images")
    print(
        f"measured {found.images_per_second:.1f} images/s in {found.precision} on {found.device}, batches of "
        f"{found.measured_batch}, {100 * found.data_wait:.0f} % of it waiting for images; "
        f"{found.memory_bytes / 2**30:.2f} GiB of memory in this process at most"
    )
    print(f"disk     {found.disk_bytes / 2**20:,.0f} MiB for checkpoints, {found.disk_free / 2**30:,.1f} GiB free")
    print(f"time     {format_hours(found.here.hours)} on this one process")
    for estimate in found.by_rule:
        print(
            f"         {format_hours(estimate.hours)} on {estimate.where} by rule, about {estimate.dollars:,.0f} "
            "US dollars (docs/training_at_scale.md has the rule)"
        )


def format_hours(hours: float) -> str:
    """`3.5 h`, `12 min`, `41 days`."""
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _print_result(result: TrainResult, *, json: bool) -> None:
    from iformer.training.records.run_folder import RunFolder

    files = RunFolder(result.folder)
    if json:
        print_json_line(
            {
                "metrics": result.metrics,
                "best": result.best,
                "seconds": result.seconds,
                "folder": result.folder,
                "last": files.last,
                "best_checkpoint": files.best,
                "report": result.report,
            }
        )
        return
    metrics, task = result.metrics, result.metadata.task
    name, label = _HEADLINES[task]
    print(f"{label} {metrics[name]:.2f} % on {metrics['images']} validation images (last weights, fp32)")
    best = f"{'best':<{len(label)}} {result.best[name]:.2f} %"
    print(f"{best} in epoch {result.best['epoch']}: chosen on these very images")
    print(f"network: {files.last}")
    if result.report is not None:
        print(f"report:  {result.report}")
