"""The output folder of `iformer.predict`: only files of an earlier call are replaced or left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from iformer.api.answers import holds_answers
from iformer.api.inputs import Input
from iformer.errors import UserError
from iformer.files import write_bytes

_UNFINISHED = ".predict.unfinished"
"""Name of the empty file that marks the output folder of a running call; it stays if the call is killed."""


def check_unused(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder holds no answers, or that they may be replaced.

    Raises:
        UserError: the folder holds answers, and `overwrite` is not set.
    """
    if holds_answers(folder) and not overwrite:
        raise UserError(
            f"{folder} holds answers already; --overwrite replaces them, another --out leaves them alone"
        )


def check_files(folder: Path, files: Sequence[Path], images: Sequence[Path]) -> None:
    """Check that writing replaces only files of an earlier call.

    Args:
        folder: the output folder.
        files: the files that would be written.
        images: the files that are read.

    Raises:
        UserError: a file to be written is one of the images, or exists in a folder that no earlier call wrote to.
    """
    read = {identity for path in images if (identity := _identity(path)) is not None}
    ours = holds_answers(folder) or (folder / _UNFINISHED).exists()
    for file in files:
        identity = _identity(file)
        if identity in read:
            raise UserError(
                f"{file} is one of the images to be read, and the result would replace it; give another --out"
            )
        if identity is not None and not ours:
            raise UserError(f"{file} exists, and no earlier predict wrote it; give another --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, which all its names share; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def marked_as_unfinished(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Mark a folder until its answers are written, so that a later call may replace files of a killed call."""
    mark = folder / _UNFINISHED
    try:
        write_bytes(mark, b"")
        yield
    finally:
        if holds_answers(folder) or not any(map(_identity, files)):
            mark.unlink(missing_ok=True)


def without_outputs(inputs: list[Input], folder: Path) -> list[Input]:
    """Leave out inputs that lie in the output folder, such as pictures of an earlier call.

    Files that the user named stay. If no file would be left, all inputs stay.
    """
    here = Path(os.path.realpath(folder))  # not Path.resolve: it raises at links that point to themselves
    # the folder `predictions/2` lies next to the answers in `predictions`
    if here.name.isdecimal() and holds_answers(here.parent):
        here = here.parent
    kept = [
        item
        for item in inputs
        if item.is_given or item.path is None or here not in Path(os.path.realpath(item.path)).parents
    ]
    return kept if any(item.path for item in kept) else inputs
