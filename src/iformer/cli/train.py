"""`iformer train`: train or fine-tune a network for one of the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import (
    DATA,
    LABELLED_DATA,
    MODEL,
    MORE,
    RECIPE,
    RUN,
    DeviceOption,
    DryRunOption,
    OverwriteOption,
    ResumeOption,
    RunFolderOption,
    SetOption,
    StrictDataOption,
    TensorboardOption,
    TrackerOption,
)
from iformer.cli.output import DebugOption, JsonOption, note, note_warnings, print_json_line, say
from iformer.cli.recipe_options import recipe_options
from iformer.errors import DataError, UserError, counted
from iformer.tasks.registry import TASKS, find_task

if TYPE_CHECKING:
    from iformer.tasks.folds import CrossValidation
    from iformer.training.job import TrainJob
    from iformer.training.lr_finder import LearningRates
    from iformer.training.records.results import TrainResult

RECIPE_OPTIONS = {
    "epochs": "epochs",
    "patience": "patience",
    "batch_size": "batch_size",
    "lr": "lr",
    "size": "size",
    "seed": "seed",
    "precision": "precision",
    "weights": "weights",
    "entry": "entry",
    "multi_label": "multi_label",
    "attention": "attention",
    "windows": "windows",
    "teacher": "distillation.teacher",
    "distillation": "distillation.loss",
}
"""Options that set recipe fields: option name -> field name."""


_TASKS = {name: row for name, row in TASKS.items() if row.verb == "train"}

_GROUPS = {
    "weights": MODEL,
    "multi_label": DATA,
    **dict.fromkeys(
        ("patience", "entry", "attention", "windows", "seed", "precision", "teacher", "distillation"), MORE
    ),
}


@recipe_options(TASKS["classify"].recipe_class, RECIPE_OPTIONS, groups=_GROUPS)
def train(
    *,
    data: Annotated[
        str | None,
        typer.Option(
            help=LABELLED_DATA,
            rich_help_panel=DATA,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network's name, or a checkpoint to fine-tune.", show_default="iformer_t", rich_help_panel=MODEL
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name, or a YAML file.",
            show_default=", ".join(row.default_recipe for row in _TASKS.values()) + " by task",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The task: {', '.join(_TASKS)}.", show_default="the recipe's, or classify", rich_help_panel=MODEL
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help=f"Kind of detector: {', '.join(TASKS['detect'].kinds)}.",
            show_default="the recipe's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(
            help=f"Kind of segmenter: {', '.join(TASKS['segment'].kinds)}.",
            show_default="the recipe's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    out: RunFolderOption,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Train 100 steps at rising learning rates, suggest --lr; keep nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of the images for validation, if the data has no validation images.",
            show_default="0.2",
            rich_help_panel=DATA,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Classifiers: the classes of the data to take, in this order.",
            show_default="all",
            rich_help_panel=DATA,
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=100,
            metavar="N",
            help="Classifiers: cross-validation, one run for each fold; mean and spread in the report.",
            rich_help_panel=DATA,
        ),
    ] = None,
    strict_data: StrictDataOption = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    tensorboard: TensorboardOption = True,
    tracker: TrackerOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    **fields: Any,
) -> None:
    """Train or fine-tune a network on your images.

    Prints the path of the report.
    """
    from iformer.api.train import build_job, run_folds
    from iformer.config.recipe_files import merge_overrides
    from iformer.tasks.training_job import is_main_process

    given = {RECIPE_OPTIONS[name]: value for name, value in fields.items() if value is not None}
    is_main = is_main_process()
    if task is not None and find_task(task).verb != "train":
        raise UserError(f"--task is {task}; use the command: iformer {find_task(task).verb}")
    if dry_run and find_lr:
        raise UserError("--dry-run and --find-lr are two measurements; give one of them")
    if resume and find_lr:
        raise UserError("--find-lr is for a new run: a resumed one keeps its learning rate; leave one of them out")
    options: dict[str, Any] = {
        "out": out,
        "model": model,
        "recipe": recipe,
        "task": task,
        "overrides": merge_overrides(set_ or [], given),
        "kinds": {"detector": detector, "segmenter": segmenter},
        "classes": None if classes is None else [name.strip() for name in classes.split(",")],
        "strict": strict_data,
        "resume": resume,
        "overwrite": overwrite,
        "device": device,
        "tensorboard": tensorboard,
        "trackers": tracker or None,
        "warn": note_warnings,
    }
    if folds is not None:
        one_run = {"--val-split": val_split is not None, "--dry-run": dry_run, "--find-lr": find_lr}
        for name, wrong in one_run.items():
            if wrong:
                raise UserError(f"{name} is for a single run, not for --folds; leave one of them out")
        with explained_stop(out):
            found_folds = run_folds(data, folds=folds, **options)
        if is_main:
            _print_folds(found_folds, json=json)
        return
    job = build_job(data, val_split=val_split, **options)
    if dry_run:
        print_dry_run(job, json=json)
        return
    if find_lr:
        from iformer.training.lr_finder import find_lr as find

        found_rates = find(job)
        if is_main:
            _print_rates(found_rates, json=json)
        return
    from iformer.training.loop import train as run

    with explained_stop(out):
        result = run(job)
    if is_main:
        print_result(result, json=json)


@contextmanager
def explained_stop(out: Path) -> Iterator[None]:
    """If Ctrl-C or broken data ends the block, print how to continue the run, if it has begun, and raise again."""
    try:
        yield
    except (KeyboardInterrupt, DataError) as error:
        from iformer.training.records.run_folder import RunFolder

        if RunFolder(out).holds_runs:
            once = "" if isinstance(error, KeyboardInterrupt) else ", once the data is as it was"
            note(f"stopped; --resume continues the run in {out}{once}")
        raise


def _print_folds(result: CrossValidation, *, json: bool) -> None:
    if json:
        metrics = {name: vars(spread) for name, spread in result.metrics.items()}
        runs = [fold.folder for fold in result.folds]
        print_json_line({"metrics": metrics, "folder": result.folder, "folds": runs, "report": result.report})
        return
    say(f"{result.headline} (last weights, fp32)")
    say(f"report:  {result.report}")


def _print_rates(found: LearningRates, *, json: bool) -> None:
    if json:
        print_json_line(found.to_plain())
        return
    every = max(1, len(found.rates) // 20)
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::every]:
        say(f"learning rate {rate:8.1e}   loss {loss:.4f}")
    say(f"the loss falls fastest at {found.steepest:.1e}: try --lr {found.lr:.1e}")


_LONG_HOURS = 1
"""Duration from which a dry run also prints estimates for servers."""


def print_dry_run(job: TrainJob, *, json: bool) -> None:
    """Time a few steps of a run, and print the estimate for the whole run as text or as one line of JSON."""
    from iformer.tasks.training_job import is_main_process
    from iformer.training.dry_run import dry_run

    found = dry_run(job)
    if not is_main_process():
        return
    if json:
        print_json_line(found.to_plain())
        return
    teacher = f", teacher {found.teacher_gmacs:.2f} GMACs" if found.teacher_gmacs else ""
    gmacs = "" if found.gmacs is None else f", {found.gmacs:.2f} GMACs"
    say(f"network  {found.model}: {found.parameters / 1e6:.2f} M parameters{gmacs}{teacher}")
    say(
        f"data     {found.data}: {counted(found.train_images, 'image')} to train on, {found.val_images:,} to "
        "validate; read"
    )
    say(f"run      recipe {found.recipe}: {counted(found.steps, 'step')} of {counted(found.batch_size, 'image')}")
    say(
        f"measured {found.images_per_second:.1f} images/s in {found.precision} on {found.device}, batches of "
        f"{found.measured_batch}, {100 * found.data_wait:.0f} % of it waiting for images; "
        f"{found.memory_bytes / 2**30:.2f} GiB of memory in this process at most"
    )
    say(f"disk     {found.disk_bytes / 2**20:,.0f} MiB for checkpoints, {found.disk_free / 2**30:,.1f} GiB free")
    say(f"time     {format_hours(found.here.hours)} on this one process")
    for estimate in found.by_rule if found.here.hours >= _LONG_HOURS else ():
        say(
            f"         {format_hours(estimate.hours)} on {estimate.where} by rule, about {estimate.dollars:,.0f} "
            "US dollars (docs/how-to/train-at-scale.md has the rule)"
        )


def format_hours(hours: float) -> str:
    """Return a duration as text, such as `12 min`, `3.5 h` or `41 days`."""
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def print_result(result: TrainResult, *, json: bool) -> None:
    """Print the metrics and files of a run as text or, with `json`, as one line of JSON."""
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
    metrics, metadata = result.metrics, result.metadata
    name, label = find_task(metadata.task).headline(multi_label=metadata.multi_label)
    say(f"{label} {metrics[name]:.2f} % on {counted(metrics['images'], 'validation image')} (last weights, fp32)")
    best = f"{'best':<{len(label)}} {result.best[name]:.2f} %"
    precision = f" ({result.best['precision']})" if "precision" in result.best else ""
    say(f"{best} in epoch {result.best['epoch']}{precision}: selected on these same images")
    say(f"network: {files.last} (last epoch: the metrics above)")
    say(f"         {files.best} (best epoch: what the name of the run folder stands for)")
    if result.report is not None:
        say(f"report:  {result.report}")
