"""Printing of results and messages, and conversion of errors to one line and an exit code.

Results go to stdout and everything else to stderr, so that `--json` can be piped. All printed text is escaped,
because names of files, classes and devices may hold control characters or characters that the terminal lacks.
"""

from __future__ import annotations

import errno
import functools
import importlib
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from iformer.errors import OutputError, StoppedBySignalError, UserError, one_line, printable, printable_lines
from iformer.files import json_text
from iformer.standard_streams import open_closed_streams
from iformer.tables import terminal_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

FAILED, USAGE, REQUEUE, INTERRUPTED, TERMINATED = 1, 2, 75, 130, 143
"""Exit codes. FAILED: an error; USAGE: an invalid command line; REQUEUE: stopped by a scheduler's signal with the
state saved (EX_TEMPFAIL: run the same command again); INTERRUPTED: by Ctrl-C; TERMINATED: by SIGTERM or SIGHUP."""

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_CLEAN_UP = 10.0
"""Seconds after SIGTERM or SIGHUP during which further ones are ignored."""

WARNINGS_SHOWN = 20
_NAME_SHOWN = 300
_LEAST_COLUMNS = 40

_SMALLER = {"batch_size": "--batch-size", "batch": "--batch", "size": "--size"}
"""Options that reduce memory if their value is smaller, by the name of the verb's parameter."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Terminated(BaseException):
    """Raised in the main thread when SIGTERM or SIGHUP has arrived."""


_terminated = threading.Event()
"""Set when one of them has arrived, because some converters replace `Terminated` by exceptions of their own."""


def console(*, stderr: bool = False) -> Console:
    """Return a console for results (`sys.stdout`) or messages (`sys.stderr`), also where these are redirected."""
    from iformer.cli.safe_console import SafeConsole  # deferred: importing rich takes 0.1 s

    made = SafeConsole(stderr=stderr, highlight=False)
    if made.width < _LEAST_COLUMNS:  # COLUMNS may be too small; rich would leave text out
        made.width = _LEAST_COLUMNS
    return made


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: int = 1,
    optional: Sequence[str] = (),
) -> None:
    """Print a table on stdout that fits the terminal; see `iformer.tables.terminal_table` for the arguments."""
    out = console()
    out.print(terminal_table(title, columns, rows, width=out.width, left=left, optional=optional))


def say(text: str, *, end: str = "\n") -> None:
    """Print text on stdout.

    Raises:
        OutputError: stdout does not take the text, such as a file on a full disk.
        BrokenPipeError: the reader of stdout has closed the pipe.
    """
    _print(printable_lines(text), end)


def note(text: str) -> None:
    """Print text on stderr. A message that stderr does not take, as on a full disk, stops no work."""
    with suppress(OSError):
        print(printable_lines(text), file=sys.stderr, flush=True)


def note_warnings(warnings: Sequence[str]) -> None:
    """Print warnings about the data on stderr, one line each, and at most `WARNINGS_SHOWN` of them."""
    for warning in warnings[:WARNINGS_SHOWN]:
        note(f"note: {warning}")
    if len(warnings) > WARNINGS_SHOWN:
        note(f"note: and {len(warnings) - WARNINGS_SHOWN} more")


def print_json(result: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout. Paths become strings; numbers that are not finite become null.

    Raises:
        OutputError, BrokenPipeError: see `say`.
    """
    _print(json_text(result, indent=indent, default=_plain))


def _print(text: str, end: str = "\n") -> None:
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror or one_line(error)}") from error


def print_json_line(result: Any) -> None:
    """Print one JSON document on one line of stdout."""
    print_json(result, indent=None)


@contextmanager
def process_settings() -> Iterator[None]:
    """Apply the settings of a command-line process while the block runs.

    Closed standard streams are connected to the null device. stdout and stderr escape characters that their
    encoding lacks. SIGTERM and SIGHUP (the terminal was closed) raise `Terminated`, so that unfinished files are
    removed; further ones are ignored for `_CLEAN_UP` seconds. Under nohup SIGHUP stays ignored.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Python accepts handlers in the main thread only, and a program that calls `main` may have its own handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    process, cleaned_up = os.getpid(), -math.inf

    def stop(number: int, frame: object) -> None:
        nonlocal cleaned_up
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)  # a forked worker ends at once
            os.kill(os.getpid(), number)
        elif (now := time.monotonic()) >= cleaned_up:
            cleaned_up = now + _CLEAN_UP
            _terminated.set()
            raise Terminated

    handled = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        _terminated.clear()


def with_clear_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a verb so that errors become one line on stderr and an exit code; `debug=True` adds the traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            # torch imports numpy in C and drops any exception of that import, so also those of signals
            importlib.import_module("numpy")
            result = function(*args, **kwargs)
        except (KeyboardInterrupt, StoppedBySignalError, Exception) as error:
            if isinstance(error, typer.Exit | typer.Abort | typer.BadParameter):
                raise
            if _terminated.is_set() and not isinstance(error, StoppedBySignalError):
                if isinstance(error, OutputError):  # what could not be saved
                    note(describe_error(error))
                raise Terminated from error
            if kwargs.get("debug") and isinstance(error, Exception):
                traceback.print_exc()
            smaller = [option for name, option in _SMALLER.items() if name in kwargs]
            raise typer.Exit(report_error(error, smaller)) from None
        if _terminated.is_set():  # the exception was lost, as in a destructor
            raise Terminated
        return result

    return run


def report_error(error: BaseException, smaller: Sequence[str] = ()) -> int:
    """Print an error as one line on stderr (nothing for a closed pipe) and return its exit code."""
    if isinstance(error, KeyboardInterrupt):
        note("interrupted")
        return INTERRUPTED
    if isinstance(error, Terminated):
        note("terminated")
        return TERMINATED
    if isinstance(error, StoppedBySignalError):
        note(str(error))
        return REQUEUE
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return FAILED  # the reader of stdout has closed the pipe (`| head`)
    note(describe_error(error, smaller))
    return FAILED


def drop_unwritable_text() -> None:
    """Drop text that stdout and stderr do not take, which the interpreter would report at exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe_error(error: BaseException, smaller: Sequence[str] = ()) -> str:
    """Return the one line that describes an error.

    Args:
        error: the exception.
        smaller: the verb's options that reduce memory if their value is smaller.
    """
    if isinstance(error, UserError):
        return f"error: {_one_line(error)}"
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, str | bytes)
        where = f": {printable(os.fsdecode(error.filename), limit=_NAME_SHOWN)}" if named else ""
        return f"error: {error.strerror}{where}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = f"; a smaller {' or '.join(smaller)} needs less" if smaller else ""
        return f"error: out of memory{hint}"
    if (package := _failed_import(error)) is not None:
        return (
            f"error: {package} cannot be imported ({one_line(error)}); install it again, or check the environment "
            "variables that it reads"
        )
    return f"internal error: {type(error).__name__}: {_one_line(error)}; run again with --debug for the traceback"


def _failed_import(error: BaseException) -> str | None:
    """Return the name of another package whose import raised the error; None if no such import failed."""
    bodies = [
        str(frame.f_globals.get("__name__"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    package = bodies[-1].partition(".")[0] if bodies else "__main__"
    return None if package in ("__main__", "iformer", "iformer_paper") else package


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy or torch number
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
