"""The folder of a training run: which files are in it, and when it may be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from iformer.errors import UserError
from iformer.files import write_text

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class RunFolder:
    """A run's files. All but the log and TensorBoard's are replaced in one step, never half written."""

    path: Path

    @property
    def best(self) -> Path:
        """The network of the best evaluation so far."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The network of the last evaluation."""
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        """What `--resume` continues from."""
        return self.path / "resume.safetensors"

    @property
    def state_before(self) -> Path:
        """The state before that one: what is left where the newest is damaged."""
        return self.path / "resume.before.safetensors"

    @property
    def holds_state(self) -> bool:
        """Whether there is something to continue from."""
        return self.state.is_file() or self.state_before.is_file()

    @property
    def config(self) -> Path:
        """The run's settings with nothing left open."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """One JSON record a line."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def metrics(self) -> Path:
        """The final metrics as JSON."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.md"

    @property
    def lock(self) -> Path:
        """What the process that trains into the folder holds; gone when it ends."""
        return self.path / ".running.part"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """See that a run may use the folder; nothing is changed.

        Raises:
            UserError: it is a file, holds something else than a run, or holds a run and neither `resume` nor
                `overwrite` is given (or both are).
        """
        if resume and overwrite:
            raise UserError("--resume continues the run in the folder, --overwrite removes it: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out names a folder")
        if not self.path.exists() or all(_is_leftover(file) for file in self.path.iterdir()):
            return
        if not self.config.is_file():
            raise UserError(f"{self.path} holds files that are not of a training run; give another --out")
        if not (resume or overwrite):
            raise UserError(
                f"{self.path} holds a run already; --resume continues it, --overwrite removes it, "
                "another --out leaves it alone"
            )

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a run.

        `overwrite` removes an older run's files, and no others; `resume` keeps them.

        Raises:
            UserError: see `check`.
            OSError: it cannot be made or written.
        """
        self.check(resume=resume, overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in filter(_is_leftover, self.path.iterdir()):
            if leftover != self.lock:
                leftover.unlink()
        if overwrite:
            for file in [
                self.best,
                self.last,
                self.state,
                self.state_before,
                self.log,
                self.metrics,
                self.report,
            ]:
                file.unlink(missing_ok=True)
            for file in [*self.tensorboard.glob("events.out.tfevents.*"), *self.path.glob("*.png")]:
                file.unlink()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep every other run, on any machine that sees the folder, from training into it.

        Nothing is kept where the file system knows no locks, nor on Windows. A process that is killed gives up its
        lock at once.

        Raises:
            UserError: another run has it.
            OSError: the folder cannot be made or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = self._take_lock()
        try:
            yield
        finally:
            if descriptor is not None:
                self._give_up_lock(descriptor)

    def _take_lock(self) -> int | None:
        if fcntl is None:
            return None
        in_use = UserError(f"{self.path} is in use: another run trains into it; wait for it or give another --out")
        while True:
            with suppress(FileNotFoundError):
                if _identity(os.stat(self.lock)) in _held:
                    raise in_use
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # not flock: that one is shared with forked workers, which outlive a killed process by seconds
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _identity(os.fstat(descriptor)) == _identity(os.stat(self.lock)):
                    _held.add(_identity(os.fstat(descriptor)))
                    return descriptor
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                raise in_use from None
            except FileNotFoundError:  # who had it has removed it in this very moment
                pass
            except OSError:  # no locks here
                os.close(descriptor)
                return None
            os.close(descriptor)

    def _give_up_lock(self, descriptor: int) -> None:
        try:
            with suppress(OSError):  # the folder may have gone, and another run's lock be in its place
                if _identity(os.fstat(descriptor)) == _identity(os.stat(self.lock)):
                    self.lock.unlink()
        finally:
            _held.discard(_identity(os.fstat(descriptor)))
            os.close(descriptor)

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write `config.yaml`.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote; empty where there is none.

        Raises:
            UserError: the file is no YAML mapping.
        """
        try:
            settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, UnicodeDecodeError):
            settings = None
        if not isinstance(settings, dict) or not isinstance(settings.get("recipe"), dict):
            raise UserError(f"{self.config} is damaged; give another --out, or --overwrite")
        return settings


_held: set[tuple[int, int]] = set()
"""Locks of this process: to the system they have one owner, who gives one up by closing any descriptor of it."""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_leftover(file: Path) -> bool:
    """Whether it is what a run leaves that is killed while it writes a file."""
    return file.name.startswith(".") and file.suffix == ".part"
