"""How values are written on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iformer.config.network import MIN_INPUT_SIZE
from iformer.config.windows import DESIGNS, PRESETS
from iformer.errors import UserError

AttentionOption = Annotated[
    str | None,
    typer.Option(help=f"The attention for large images: {', '.join(DESIGNS)}. [default: the network's own]"),
]
WindowsOption = Annotated[
    str | None,
    typer.Option(
        help=f"Settings of the attention's windows: {', '.join(PRESETS)}. [default: released for M, L and L2, "
        "else paper]"
    ),
]


def parse_size(text: str) -> tuple[int, int]:
    """`224` or `192x256` (height x width, pixels) as (height, width).

    Raises:
        UserError: it is neither, or a side is below what the networks take.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
        raise UserError(f"--size is '{text}'; expected pixels such as 224, or height x width such as 192x256")
    height, width = int(sides[0]), int(sides[-1])
    if min(height, width) < MIN_INPUT_SIZE:
        raise UserError(f"--size is '{text}'; the networks take sides of {MIN_INPUT_SIZE} pixels or more")
    return height, width


def output_folder(path: Path) -> Path:
    """Make a folder for results and see that it can be written, before any work is done for it.

    Raises:
        OSError: it cannot be made, or nothing can be written there.
    """
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".iformer-write-test"
    probe.touch()
    probe.unlink()
    return path
