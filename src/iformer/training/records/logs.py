"""Output of a run: `log.jsonl`, trackers, and a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iformer.errors import printable
from iformer.training.records.pace import Pace, format_seconds

if TYPE_CHECKING:
    from iformer.training.protocol import Task
    from iformer.training.records.trackers import Trackers

PLAIN_LINE_SECONDS = 60.0
"""Shortest time, in seconds, from any line to the next progress line if stderr is not a terminal."""


class RunLog:
    """The log of a run, `log.jsonl` with one JSON record per line, whose numbers are also sent to trackers.

    The field `event` of a record is `start`, `resume`, `step`, `epoch` or `end`.
    """

    def __init__(self, path: Path, trackers: Trackers | None = None, *, keep_bytes: int = 0) -> None:
        """Open the log for appending.

        Args:
            path: the log file.
            trackers: also receive the numbers and pictures; closed together with the log.
            keep_bytes: length to which an existing file is truncated first, because a resumed run repeats the
                records written after its state was saved.

        Raises:
            OSError: the log cannot be written.
        """
        path.touch()
        os.truncate(path, min(keep_bytes, path.stat().st_size))
        self._file = path.open("a", encoding="utf-8")
        if not _ends_in_newline(path):  # truncated by a full disk or an editor
            self._file.write("\n")
        self.trackers = trackers

    def write(self, event: str, **values: Any) -> None:
        """Append a record. Numbers of `step` and `epoch` events are also sent to the trackers at `values["step"]`.

        Raises:
            OSError: the log cannot be written.
        """
        try:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error
        if self.trackers is not None and event in ("step", "epoch"):
            numbers = {
                f"{event}/{name}": value
                for name, value in values.items()
                if isinstance(value, int | float) and name not in ("step", "epoch")
            }
            self.trackers.log(numbers, values["step"])

    def sync(self) -> int:
        """Flush the log to disk; return its length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self.trackers is not None:
            self.trackers.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the log and the trackers."""
        with contextlib.suppress(OSError):  # a failed write has already been reported
            self._file.close()
        if self.trackers is not None:
            self.trackers.close()


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return size == 0 or (file.seek(size - 1), file.read(1))[1] == b"\n"


class ProgressView:
    """Progress on stderr: a live bar on a terminal, plain lines elsewhere.

    Work may be counted in any unit that is proportional to time.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int = 0,
        shown: bool = True,
        what: str = "training",
        pace: Pace | None = None,
    ) -> None:
        """Start at `done` of `total` units of work; a total of 0 is unknown. Lines of `pace.step` are printed."""
        self._total, self._done, self._start_done, self._pace = total, done, done, pace
        self._text = ""
        self._began = self._last_line = time.monotonic()
        self._shown = shown
        self._bar: Any = None
        self._task: Any = None
        # a program may have replaced stderr by an object that only has `write`
        if shown and getattr(sys.stderr, "isatty", lambda: False)():
            self._bar, self._task = _bar(total, done, what)

    def __enter__(self) -> ProgressView:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: int, text: str | None = None) -> None:
        """Add `work` finished units. `text` replaces the text next to the bar."""
        self._done += work
        self._text = self._text if text is None else text
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=self._text, left=self._left())
        elif text is not None and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self.say(f"{text}, {self._left()} left" if self._total else text)
        for line in [] if self._pace is None else self._pace.step(self._done, self._total):
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line on stderr, above the live bar if there is one."""
        if not self._shown or sys.stderr is None:
            return
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError):  # a full disk behind stderr stops no training
                print(line, file=sys.stderr, flush=True)

    def _left(self) -> str:
        worked = self._done - self._start_done
        if worked <= 0 or not self._total:
            return "?"
        return format_seconds((self._total - self._done) * (time.monotonic() - self._began) / worked)


def epoch_line(record: dict[str, Any], epochs: int, task: Task) -> str:
    """Return an `epoch` record as one line of text, with the primary metric of the task."""
    rate, value = record["images_per_second"], record.get(f"val_{task.primary_metric}")
    parts = [
        f"epoch {record['epoch']}/{epochs}",
        f"loss {record['train_loss']:.4f}" if "train_loss" in record else "",
        f"accuracy {record['train_accuracy']:.1f} %" if "train_accuracy" in record else "",
        f"validation loss {record['val_loss']:.4f}" if "val_loss" in record else "",
        f"validation {task.metric_label} {value:.2f} %" if value is not None else "",
        f"{rate:.1f} images/s" if rate else "",
        f"{format_seconds(record['seconds'])} so far",
    ]
    return ", ".join(part for part in parts if part)


def _bar(total: int, done: int, what: str) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TextColumn("{task.fields[left]} left", markup=False),
        console=Console(stderr=True),
        # refreshing the bar slows down a training that uses all cores
        refresh_per_second=2,
        transient=True,
    )
    return bar, bar.add_task(printable(what), total=total or None, completed=done, text="", left="?")
