"""Lock files, which let only one process at a time write into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iformer.errors import UserError
from iformer.files import output_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def reserved(lock: Path, in_use: str) -> Iterator[None]:
    """Hold a lock file while the block runs, then remove the file.

    The lock excludes processes on this machine and on other machines that mount the folder. The folder is created.
    On Windows and on file systems without locks nothing is locked. A killed process loses its lock at once.

    Args:
        lock: path of the lock file.
        in_use: start of the error message if the lock is held; advice is appended.

    Raises:
        UserError: another process, or another call in this process, holds the lock.
        OutputError: the folder cannot be created or written.
    """
    output_folder(lock.parent)
    descriptor = _lock(lock, UserError(f"{in_use}; wait for it or give another --out"))
    try:
        yield
    finally:
        if descriptor is not None:
            _unlock(lock, descriptor)


def remove_locks() -> None:
    """Remove the lock files of this process. Call it before the process ends without unwinding its stack."""
    for identity, lock in tuple(_held.items()):
        with suppress(OSError):
            if _identity(os.stat(lock)) == identity:
                lock.unlink()


_held: dict[tuple[int, int], Path] = {}
"""Lock files held by this process, by device and inode. None of them may be opened a second time, because a
process loses its lock when it closes any descriptor of the file."""


def _lock(lock: Path, in_use: UserError) -> int | None:
    if fcntl is None:
        return None
    while True:
        with suppress(FileNotFoundError):
            if _identity(os.stat(lock)) in _held:
                raise in_use
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # not flock: forked workers share such a lock and outlive a killed process by seconds
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(os.fstat(descriptor)) == _identity(os.stat(lock)):
                _held[_identity(os.fstat(descriptor))] = lock
                return descriptor
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise in_use from None
        except FileNotFoundError:  # the owner has just removed it
            pass
        except OSError:  # the file system has no locks
            os.close(descriptor)
            return None
        os.close(descriptor)


def _unlock(lock: Path, descriptor: int) -> None:
    try:
        with suppress(OSError):  # the folder may be gone, or the file another process's lock
            if _identity(os.fstat(descriptor)) == _identity(os.stat(lock)):
                lock.unlink()
    finally:
        _held.pop(_identity(os.fstat(descriptor)), None)
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
