"""`iformer train`: train or fine-tune a network for one of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import DeviceOption
from iformer.cli.output import DebugOption, JsonOption, note, note_warnings, print_json_line, say
from iformer.cli.recipe_options import recipe_options
from iformer.errors import UserError
from iformer.tasks.registry import TASKS, find_task

if TYPE_CHECKING:
    from iformer.training.dry_run import DryRun
    from iformer.training.records.results import TrainResult

RECIPE_OPTIONS = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "size": "size",
    "seed": "seed",
    "precision": "precision",
    "weights": "weights",
    "entry": "entry",
    "attention": "attention",
    "windows": "windows",
    "teacher": "distillation.teacher",
    "distillation": "distillation.loss",
}
"""The options that set a field of the recipe, with the fields."""


@recipe_options(TASKS["classify"].recipe_class, RECIPE_OPTIONS)
def train(
    *,
    out: Annotated[Path, typer.Option(help="The run's folder: networks, log, report.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="classify: a folder with one sub-folder per class (also in train/ and val/), tar shards (a "
            "folder or URL), hfds/NAME, or elpv; detect: with COCO annotations; segment: with images and masks."
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
            show_default=", ".join(row.default_recipe for row in TASKS.values()) + " by task",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"The task: {', '.join(TASKS)}.", show_default="the recipe's, or classify"),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help=f"Kind of detector: {', '.join(TASKS['detect'].kinds)}.", show_default="the recipe's"),
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(help=f"Kind of segmenter: {', '.join(TASKS['segment'].kinds)}.", show_default="the recipe's"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out with its own settings.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, time a few steps, estimate the run; keep nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that is in --out.")] = False,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of the images for validation, if the data has no validation images.", show_default="0.2"
        ),
    ] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read, instead of skipping it.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe, for example augment.hflip=0."),
    ] = None,
    device: DeviceOption = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's files.")] = True,
    json: JsonOption = False,
    debug: DebugOption = False,
    **fields: Any,
) -> None:
    """Train or fine-tune a network on your images.

    Prints the path of the report.
    """
    from iformer.api.train import prepare
    from iformer.config.recipe_files import merge_overrides
    from iformer.tasks.train import is_main_process

    given = {RECIPE_OPTIONS[name]: value for name, value in fields.items() if value is not None}
    is_main = is_main_process()
    job = prepare(
        data,
        out=out,
        model=model,
        recipe=recipe,
        task=task,
        overrides=merge_overrides(set_ or [], given),
        kinds={"detector": detector, "segmenter": segmenter},
        val_split=val_split,
        strict=strict_data,
        resume=resume,
        overwrite=overwrite,
        device=device,
        tensorboard=tensorboard,
        warn=note_warnings,
    )
    if dry_run:
        from iformer.training.dry_run import dry_run as measure

        if job.recipe.task != "classify":
            raise UserError("--dry-run is for --task classify; leave it out")
        found = measure(job)
        if is_main:
            _print_dry_run(found, json=json)
        return
    from iformer.training.loop import train as run

    try:
        result = run(job)
    except KeyboardInterrupt:
        note(f"stopped; --resume continues the run in {out}")
        raise
    if is_main:
        _print_result(result, json=json)


def _print_dry_run(found: DryRun, *, json: bool) -> None:
    if json:
        print_json_line(found.to_plain())
        return
    teacher = f", teacher {found.teacher_gmacs:.2f} GMACs" if found.teacher_gmacs else ""
    say(f"network  {found.model}: {found.parameters / 1e6:.2f} M parameters, {found.gmacs:.2f} GMACs{teacher}")
    say(
        f"data     {found.data}: {found.train_images:,} images to train on, {found.val_images:,} to validate; read"
    )
    say(f"run      recipe {found.recipe}: {found.steps:,} steps of {found.batch_size} images")
    say(
        f"measured {found.images_per_second:.1f} images/s in {found.precision} on {found.device}, batches of "
        f"{found.measured_batch}, {100 * found.data_wait:.0f} % of it waiting for images; "
        f"{found.memory_bytes / 2**30:.2f} GiB of memory in this process at most"
    )
    say(f"disk     {found.disk_bytes / 2**20:,.0f} MiB for checkpoints, {found.disk_free / 2**30:,.1f} GiB free")
    say(f"time     {format_hours(found.here.hours)} on this one process")
    for estimate in found.by_rule:
        say(
            f"         {format_hours(estimate.hours)} on {estimate.where} by rule, about {estimate.dollars:,.0f} "
            "US dollars (docs/how-to/train-at-scale.md has the rule)"
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
    name, label = find_task(task).metric, find_task(task).metric_label
    say(f"{label} {metrics[name]:.2f} % on {metrics['images']} validation images (last weights, fp32)")
    best = f"{'best':<{len(label)}} {result.best[name]:.2f} %"
    say(f"{best} in epoch {result.best['epoch']}: chosen on these very images")
    say(f"network: {files.last}")
    if result.report is not None:
        say(f"report:  {result.report}")
