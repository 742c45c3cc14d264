"""The folder of a training run: its files, its lock, and the checks before a run uses it."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from iformer.errors import ConfigError, OutputError, UserError
from iformer.files import read_at_most, write_text
from iformer.locks import reserved
from iformer.safe_yaml import read_yaml
from iformer.training.records.history import read_history

_MAX_CONFIG_BYTES = 4 * 2**20
"""Largest `config.yaml` that is read, in bytes. The file lists the class names, so it can be long."""


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder. All files except the log and TensorBoard's are written atomically."""

    path: Path

    @property
    def best(self) -> Path:
        """Network of the best evaluation so far."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """Network of the last evaluation."""
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        """The state that `--resume` continues from."""
        return self.path / "resume.safetensors"

    @property
    def state_before(self) -> Path:
        """The previous state, used if the newest one is damaged."""
        return self.path / "resume.before.safetensors"

    @property
    def holds_state(self) -> bool:
        """Whether the folder holds a state to resume from."""
        return self.state.is_file() or self.state_before.is_file()

    @property
    def config(self) -> Path:
        """All settings of the run, as YAML."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """The log, one JSON record per line."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """File with the run ids of the trackers other than TensorBoard; `{}` for a run without trackers."""
        return self.path / "trackers.json"

    @property
    def metrics(self) -> Path:
        """The final metrics as JSON."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report, as Markdown."""
        return self.path / "report.md"

    @property
    def card(self) -> Path:
        """The model card for the Hugging Face hub."""
        return self.path / "README.md"

    @property
    def lock(self) -> Path:
        """Lock file of the process that trains into the folder; removed when that process ends."""
        return self.path / ".running.part"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that a run may use the folder; nothing is changed.

        Raises:
            OutputError: the path cannot be that of a folder.
            UserError: both `resume` and `overwrite` are set; the path is a file; the folder holds files that are
                not from a run; it holds a run and neither is set; or the `config.yaml` of the run, or the state of
                the run to resume, is missing.
        """
        if resume and overwrite:
            raise UserError("--resume continues the run in the folder, --overwrite removes it: give one of them")
        try:
            self.path.stat()
            exists = True
        except (FileNotFoundError, NotADirectoryError):
            exists = False
        except OSError as error:  # such as a name that is too long for a folder
            raise OutputError(f"cannot write into {self.path}: {error.strerror or error}") from error
        if exists and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out names a folder")
        if not exists or all(_is_leftover(file) for file in self.path.iterdir()):
            return
        if not self.config.is_file() or (overwrite and not self._is_run()):
            if self.holds_folds:
                raise UserError(
                    f"{self.path} holds a cross-validation, with its runs in fold-1 and so on; add "
                    f"--folds{self._number_of_folds}, or give another --out"
                )
            if self._holds_run_files:  # then the file is missing
                further = f"; --model {self.last} with it trains its network further"
                raise UserError(
                    f"{self.path} holds files of a training run, but its {self.config.name} is missing; copy that "
                    "file back to resume the run, or give another --out" + (further if self.last.is_file() else "")
                )
            raise UserError(f"{self.path} holds files that are not of a training run; give another --out")
        if not (resume or overwrite):
            raise UserError(
                f"{self.path} holds a run already; --resume continues it, --overwrite removes it, "
                "another --out leaves it alone"
            )
        if resume and not self.holds_state and (self.metrics.is_file() or self._epochs > 1):
            further = f"; --model {self.last} with another --out trains its network further"
            raise UserError(
                f"{self.path} has no {self.state.name}, so its run cannot be resumed; --overwrite starts again"
                + (further if self.last.is_file() else "")
            )

    @property
    def _has_log(self) -> bool:
        """Whether the folder has a `log.jsonl` that begins like a run's log."""
        if not self.log.is_file():  # reading a pipe would block
            return False
        with suppress(OSError), self.log.open("rb") as file:
            return file.read(32).startswith(b'{"event": "')
        return False

    @property
    def _epochs(self) -> int:
        """Number of epochs in the log; 0 without a log."""
        return len(read_history(self.log)) if self.log.is_file() else 0

    @property
    def _linked_pictures(self) -> set[str]:
        """Names of the pictures that the report links to."""
        with suppress(OSError):
            return set(_LINKED_PICTURE.findall((read_at_most(self.report, _MAX_REPORT_BYTES) or b"").decode()))
        return set()

    @property
    def holds_runs(self) -> bool:
        """Whether the folder is that of a run or of a cross-validation, as far as their `config.yaml` says."""
        return self.config.is_file() or self.holds_folds

    @property
    def holds_folds(self) -> bool:
        """Whether the folder is that of a cross-validation."""
        return (self.path / "fold-1" / self.config.name).is_file()

    @property
    def _number_of_folds(self) -> str:
        """The number of folds of a cross-validation after a space; empty if its first run does not say it."""
        with suppress(UserError, OSError):
            match RunFolder(self.path / "fold-1").read_config().get("fold"):
                case [_, int(number)]:
                    return f" {number}"
        return ""

    def _is_run(self) -> bool:
        """Return whether a folder with a `config.yaml` is a run folder, since other programs use that name too."""
        if self._holds_run_files:
            return True
        with suppress(UserError, OSError):
            return bool(self.read_config())
        return False

    @property
    def _holds_run_files(self) -> bool:
        """Whether the folder holds a state, a network or a log of a run."""
        return self.holds_state or self.best.is_file() or self.last.is_file() or self._has_log

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Create the folder and remove temporary files of killed runs; the files of an earlier run stay.

        Raises:
            UserError: see `check`.
            OSError: the folder cannot be created or written.
        """
        self.check(resume=resume, overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in filter(_is_leftover, self.path.iterdir()):
            if leftover != self.lock:
                leftover.unlink()

    def run_files(self) -> list[Path]:
        """Return the files of the run in the folder that `--overwrite` removes: all but `config.yaml`."""
        files = [
            self.best,
            self.last,
            self.state,
            self.state_before,
            self.log,
            self.metrics,
            self.report,
            self.trackers,
            self.card,
            *(self.path / name for name in {*_REPORT_PICTURES, *self._linked_pictures}),
        ]
        return [*(file for file in files if file.exists()), *self.tensorboard.glob("events.out.tfevents.*")]

    def reserved(self) -> AbstractContextManager[None]:
        """Lock the folder against other runs; see `iformer.locks.reserved`.

        Raises:
            UserError: another run has the lock.
            OSError: the folder cannot be created or written.
        """
        return reserved(self.lock, f"{self.path} is in use: another run trains into it")

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write `config.yaml`.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """Read `config.yaml`. Without the file, return an empty mapping.

        Raises:
            UserError: the file is not a YAML mapping with a recipe.
        """
        try:
            settings = read_yaml(self.config, max_bytes=_MAX_CONFIG_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ConfigError:
            settings = None
        if not isinstance(settings, dict) or not isinstance(settings.get("recipe"), dict):
            raise UserError(f"{self.config} is damaged; put a copy back, or give another --out or --overwrite")
        return settings


_REPORT_PICTURES = (
    *("confidence.png", "confusion.png", "curves.png", "mistakes.png", "predictions.png", "reliability.png"),
)
"""Names of report pictures. If a run was killed while writing its report, they may exist without `report.md`."""
_LINKED_PICTURE = re.compile(r"!\[[^\]]*\]\(([\w-]+\.png)\)")
_MAX_REPORT_BYTES = 16 * 2**20
_LEFTOVER = re.compile(r"\.(running|[0-9a-f]{16})\.part")
"""Names of the lock and of unfinished files (`iformer.files.replacing`)."""


def _is_leftover(file: Path) -> bool:
    """Return whether a file is a temporary file left by a killed run."""
    return _LEFTOVER.fullmatch(file.name) is not None and file.is_file() and not file.is_symlink()
