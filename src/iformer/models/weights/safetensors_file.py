"""Open safetensors files, and explain why a file cannot be opened as weights."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from iformer.errors import WeightsError, one_line, printable
from iformer.files import near_paths, require_regular_file, utf8_name

SUFFIX = ".safetensors"
WEIGHT_SUFFIXES = (SUFFIX, ".pth", ".pt", ".bin", ".ckpt", ".tar")
_ATTEMPTS = 10


@contextlib.contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file; its tensors are memory-mapped, not read.

    Raises:
        WeightsError: the file does not exist, is damaged or is something else; the message says which.
    """
    try:
        file = _open(os.fspath(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise unreadable(path, error) from error
    try:
        with file as opened:
            yield opened
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {one_line(error)}") from error


def _open(path: str) -> Any:
    """Open a file; try again if it was replaced meanwhile, because header and tensors are opened separately."""
    for _ in range(_ATTEMPTS - 1):
        before = _identity(path)
        try:
            file = _opened_once(path)
        except RuntimeError:
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return file
    return _opened_once(path)


def _opened_once(path: str) -> Any:
    with utf8_name(path) as name:
        return safe_open(name, framework="pt")


def _identity(path: str) -> tuple[int, int, int] | None:
    """Return numbers that change when a file is replaced; None if the file does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def unreadable(path: str | os.PathLike[str], error: Exception | None = None) -> WeightsError:
    """Return an error that says why `path` cannot be read as weights and what to do."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as os_error:
        if os_error.errno == errno.ENAMETOOLONG:
            return WeightsError(f"'{printable(str(path), limit=100)}' is too long for the name of a file")
        if os_error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return WeightsError(f"{path} cannot be read: {os_error.strerror or os_error}")
        return WeightsError(f"{path} does not exist; give the path of a weight file{near_paths(path)}")
    if path.is_dir():
        return WeightsError(f"{path} is a folder; give the {SUFFIX} file in it")
    try:
        require_regular_file(path)
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as os_error:
        return WeightsError(f"{path} cannot be read: {os_error.strerror or os_error}")
    again = "download or copy it again"
    if not start:
        return WeightsError(f"{path} is empty (0 bytes); {again}")
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return WeightsError(f"{path} is a web page, not a weight file; {again}")
    reason = f" ({one_line(error)})" if error is not None else ""
    if start[8:9] == b"{":
        return WeightsError(f"{path} is truncated or damaged ({size} bytes){reason}; {again}")
    if path.suffix and path.suffix.lower() not in WEIGHT_SUFFIXES:
        return WeightsError(
            f"{path} is not a weight file; give a checkpoint, a run folder, or an artifact with its record "
            f"({path.name}.json) beside it"
        )
    return WeightsError(f"{path} is not a weight file, or is damaged ({size} bytes){reason}; {again}")
