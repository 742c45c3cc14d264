"""Atomic writes (a file is written completely or not at all), bounded reads, near names, and JSON text."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from iformer.errors import OutputError, listed, printable


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file atomically: a reader of `path` sees either the old content or all of the new content.

    Raises:
        OutputError: the file cannot be written; an older file stays as it was, and no temporary file remains.
    """
    with replacing(path) as file:
        file.write(data)
    return Path(path)


def require_regular_file(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file in bytes. Pipes and devices are refused, because they may have no end.

    Raises:
        OSError: `path` does not exist, or is a folder, pipe, socket or device.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return status.st_size


def near_paths(path: str | os.PathLike[str]) -> str:
    """Return the end of a message about a missing file or folder, `path`: near names, or where it was looked for.

    Such as `; did you mean runs/mine?`. Without a near name, a relative path gives `; looked for FOLDER/NAME`; an
    absolute path gives an empty string. A name that the system refuses as too long gives that reason.
    """
    missing = Path(path)
    try:
        os.lstat(missing)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "; the name is too long for a file"
    except ValueError:
        return "; no name of a file has a NUL character"
    for existing in missing.parents:
        if os.path.isdir(existing):
            break
    else:
        return ""
    name, *rest = missing.relative_to(existing).parts
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(existing) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    near = [existing / other for other in difflib.get_close_matches(name, sorted(names), cutoff=0.7)]
    whole = [folder.joinpath(*rest) for folder in near if folder.joinpath(*rest).exists()]
    if whole or near:
        return f"; did you mean {listed(list(map(str, whole or near)), separator=' or ')}?"
    return "" if missing.is_absolute() else f"; looked for {printable(str(missing.absolute()), limit=500)}"


_MOST_NAMES = 10_000
"""Largest number of names in a folder that `near_paths` compares."""


@contextlib.contextmanager
def utf8_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a UTF-8 name of an existing file, for libraries that accept no other names; valid inside the block.

    Raises:
        OSError: the file's name is not UTF-8 and the file cannot be opened.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name


def read_at_most(path: str | os.PathLike[str], max_bytes: int) -> bytes | None:
    """Return the contents of a regular file; None if the file has more than `max_bytes` bytes.

    Raises:
        OSError: the file is not a regular file (see `require_regular_file`) or cannot be read.
    """
    require_regular_file(path)
    with open(path, "rb") as file:
        contents = file.read(max_bytes + 1)
    return contents if len(contents) <= max_bytes else None


def copy_file(source: Path, target: Path) -> None:
    """Copy the contents of a file.

    Raises:
        OSError: a file cannot be read or written. On a full disk it names `target`, where that of `shutil` names
            `source`.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        raise


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a string in UTF-8; see `write_bytes`. Characters that UTF-8 cannot encode become escape sequences."""
    return write_bytes(path, text.encode(errors="backslashreplace"))


def json_text(
    value: Any, *, indent: int | None = None, ascii_only: bool = True, default: Callable[[Any], Any] | None = None
) -> str:
    """Return a value as JSON. Numbers that are not finite become null, because JSON has no notation for them.

    Args:
        value: the value, of plain types or of types that `default` converts.
        indent: spaces per level; None writes a single line.
        ascii_only: write characters outside ASCII as escape sequences.
        default: function that converts values of other types to plain values.
    """

    def dumps(plain: Any) -> str:
        return json.dumps(
            plain,
            indent=indent,
            ensure_ascii=ascii_only,
            allow_nan=False,
            default=None if default is None else lambda other: _finite(default(other)),
        )

    try:
        return dumps(value)
    except ValueError:
        return dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a temporary binary file that is synced and replaces `path` if the block ends without an error.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or `path` is not a regular file.
    """
    try:
        with _replacing(path) as file:
            yield file
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_reason(Path(path), error)}") from error


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    target = Path(os.path.realpath(path))  # keep a link; replace its target
    if target.exists() and not target.is_file():
        raise OSError(None, "it exists and is not a plain file")
    part = target.parent / f".{secrets.token_hex(8)}.part"
    _unfinished.add(part)
    try:
        # not tempfile, whose files only their owner can read
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    finally:
        _unfinished.discard(part)
    _sync_folder(target.parent)


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove unfinished temporary files. Call it before the process ends without unwinding its stack."""
    for part in tuple(_unfinished):
        with contextlib.suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync a folder, and with it a finished rename, to disk. Do nothing where the system does not support this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(path: Path, error: OSError) -> str:
    folder = path.absolute().parent
    if not os.path.exists(folder):
        return f"the folder {folder} does not exist"
    if not os.path.isdir(folder):
        return f"{folder} is not a folder"
    return error.strerror or str(error)


def output_folder(path: Path) -> Path:
    """Create a folder for results and check that it is writable, before any work is done; return its path.

    Raises:
        OutputError: the folder cannot be created or is not writable; new parents of it are removed.
    """
    missing = _missing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        _remove_empty(missing)
        nowhere = os.path.islink(path) and not os.path.exists(path)  # False for names that are too long
        reason = f"it is a link to {os.readlink(path)}, which does not exist" if nowhere else error.strerror
        raise OutputError(f"cannot write into {path}: {reason or error}") from error


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[Path]:
    """On exit, remove the folder and its parents if they did not exist before and are still empty."""
    missing = _missing(folder)
    try:
        yield folder
    finally:
        _remove_empty(missing)


@contextlib.contextmanager
def removed_on_failure(folder: Path | None) -> Iterator[None]:
    """Create an output folder (see `output_folder`), if one is given; if the block fails, remove a new one.

    Raises:
        OutputError: the folder cannot be created or is not writable.
    """
    missing = [] if folder is None else _missing(folder)
    try:
        if folder is not None:
            output_folder(folder)
        yield
    except BaseException:
        _remove_empty(missing)
        raise


def _missing(folder: Path) -> list[Path]:
    """Return the folder and its parents, innermost first, as far as they do not exist."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it was not made, or is not empty
            folder.rmdir()


def size_text(size: int) -> str:
    """Return a number of bytes in bytes, MiB or GiB."""
    if size < 2**20:
        return f"{size:,} bytes"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
