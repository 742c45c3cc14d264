"""Options shared by several verbs, and parsing of their values."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from iformer.cli.output import note
from iformer.config.network import MAX_INPUT_SIZE, MIN_INPUT_SIZE
from iformer.config.windows import DESIGNS, PRESETS
from iformer.errors import UserError
from iformer.tasks.registry import TASKS

DATA, MODEL, RECIPE, RUN = "Data", "Model", "Recipe", "Run"
MORE = "More options"
"""Names of option groups in a verb's help. The options of `MORE` are shown only by --help-all."""

LABELLED_DATA = "; ".join(f"{row.name}: {row.data}" for row in TASKS.values() if row.verb == "train") + "."
"""Help text of `--data`: the data that each task reads."""

AttentionOption = Annotated[
    str | None,
    typer.Option(
        help=f"Attention design for large images: {', '.join(DESIGNS)}. [default: the network's own]",
        rich_help_panel=MORE,
    ),
]
WindowsOption = Annotated[
    str | None,
    typer.Option(
        help=f"Settings of the attention's windows: {', '.join(PRESETS)}. [default: released for M, L and L2, "
        "else paper]",
        rich_help_panel=MORE,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto: a GPU if there is one.", metavar="NAME"),
]
"""Option `--device`; see `iformer.device.resolve_device` for its values."""

RENAMED_OPTIONS = {"--part": "--split"}
"""Old spelling -> new spelling of an option. Verbs that have the new option also accept the old spelling."""


def current_options(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """Return arguments with the new spelling of each renamed option, and print a note on stderr for each.

    Args:
        arguments: command-line arguments of one verb.
        known: the options of that verb.

    Raises:
        typer.BadParameter: `--out` has an empty value, which would mean the working folder.
    """
    current = list(arguments)
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--out" and not value and (equals or arguments[index + 1 : index + 2] == [""]):
            raise typer.BadParameter("--out is empty; give a path, or . for the working folder")
        if name in RENAMED_OPTIONS and name not in known and RENAMED_OPTIONS[name] in known:
            current[index] = RENAMED_OPTIONS[name] + equals + value
            note(f"note: {name} is now {RENAMED_OPTIONS[name]}")
    return current


MaxDetectionsOption = Annotated[
    int | None,
    typer.Option(min=1, max=100_000, help="Detectors: most objects on an image.", show_default="as trained"),
]
IouOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1,
        help="Detectors: overlap above which the weaker box is dropped.",
        show_default="as trained",
    ),
]
Engine = Literal["auto", "torch", "onnx", "openvino"]
EngineOption = Annotated[
    Engine,
    typer.Option(
        rich_help_panel=MORE,
        help="What computes a network's answers on the CPU. onnx and openvino: after an export of some seconds. "
        "auto: torch; in predict onnx, for a classifier on thousands of images.",
    ),
]
EntryOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MORE,
        metavar="KEY",
        help="Which weights of a training script's file to take, such as model_ema. [default: the weights "
        "themselves, an average only if there is nothing else]",
    ),
]

# options of every verb that trains

RunFolderOption = Annotated[
    Path, typer.Option(help="The run's folder: networks, log, report.", rich_help_panel=RUN)
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out with its own settings.", rich_help_panel=RUN)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, time a few steps, estimate the run; keep nothing.",
        rich_help_panel=RUN,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Remove the run that is in --out.", rich_help_panel=RUN)
]
StrictDataOption = Annotated[
    bool,
    typer.Option(
        "--strict-data",
        help="Stop at an image that cannot be read, instead of skipping it.",
        rich_help_panel=MORE,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field: augment.hflip=0; iformer info --recipe lists all.",
        rich_help_panel=RECIPE,
    ),
]
TensorboardOption = Annotated[
    bool, typer.Option(help="Write TensorBoard's files, if there is no --tracker.", rich_help_panel=MORE)
]
TrackerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="tensorboard, wandb, mlflow, comet or none; several with commas.",
        show_default="tensorboard",
        rich_help_panel=RUN,
    ),
]


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size in pixels, `224` or `192x256` (height x width), into (height, width).

    Raises:
        UserError: the text has neither form, or the networks do not support a side of this length.
    """
    if not re.fullmatch(r"\s*\d{1,9}\s*(x\s*\d{1,9}\s*)?", text, re.IGNORECASE | re.ASCII):
        raise UserError(f"--size is '{text[:80]}'; expected pixels such as 224, or height x width such as 192x256")
    sides = [int(side) for side in text.lower().split("x")]
    if min(sides) < MIN_INPUT_SIZE:
        raise UserError(f"--size is '{text}'; the networks take sides of {MIN_INPUT_SIZE} pixels or more")
    if max(sides) > MAX_INPUT_SIZE:
        raise UserError(f"--size is '{text}'; the networks take sides of {MAX_INPUT_SIZE} pixels or less")
    return sides[0], sides[-1]
