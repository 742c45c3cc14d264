"""`iformer pretrain`: train a backbone without labels."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iformer.cli.arguments import (
    DATA,
    MODEL,
    MORE,
    RECIPE,
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
from iformer.cli.output import DebugOption, JsonOption, note_warnings, say
from iformer.cli.recipe_options import recipe_options
from iformer.cli.train import explained_stop, print_dry_run, print_result
from iformer.tasks.registry import TASKS

_ROW = TASKS["pretrain"]
RECIPE_OPTIONS = {
    name: name
    for name in (
        "teacher",
        "teacher_weights",
        "weights",
        "epochs",
        "patience",
        "batch_size",
        "lr",
        "size",
        "seed",
        "precision",
    )
}
"""Options that set recipe fields: option name -> field name."""


@recipe_options(
    _ROW.recipe_class,
    RECIPE_OPTIONS,
    groups={
        **dict.fromkeys(("teacher", "teacher_weights", "weights"), MODEL),
        **dict.fromkeys(("patience", "seed", "precision"), MORE),
    },
)
def pretrain(
    *,
    data: Annotated[
        str | None,
        typer.Option(help=f"Images without labels: {_ROW.data}.", rich_help_panel=DATA),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The network to train: a name, or a checkpoint.", show_default="iformer_t", rich_help_panel=MODEL
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name, or a YAML file.", show_default=_ROW.default_recipe, rich_help_panel=RECIPE
        ),
    ] = None,
    out: RunFolderOption,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of the images on which the features are compared.",
            show_default="0.1",
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
    """Train a backbone on images without labels to imitate a teacher's features.

    `iformer train --model RUN` starts from the result. Prints the path of the report.
    """
    from iformer.api.train import build_job
    from iformer.config.recipe_files import merge_overrides
    from iformer.tasks.training_job import is_main_process

    given = {RECIPE_OPTIONS[name]: value for name, value in fields.items() if value is not None}
    job = build_job(
        data,
        out=out,
        model=model,
        recipe=recipe,
        task=_ROW.name,
        overrides=merge_overrides(set_ or [], given),
        val_split=val_split,
        strict=strict_data,
        resume=resume,
        overwrite=overwrite,
        device=device,
        tensorboard=tensorboard,
        trackers=tracker or None,
        warn=note_warnings,
    )
    if dry_run:
        print_dry_run(job, json=json)
        return
    from iformer.training.loop import train as run

    with explained_stop(out):
        result = run(job)
    if is_main_process():
        print_result(result, json=json)
        if not json:
            say(f"next:    iformer train --data FOLDER --model {result.folder} --out RUN")
