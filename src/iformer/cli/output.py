"""What the verbs share: how they print, and how an error becomes one clear line and an exit code.

Results go to stdout, everything said on the way to stderr, so that `--json` can be piped.
"""

from __future__ import annotations

import errno
import functools
import json as json_module
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from iformer.errors import StoppedBySignalError, UserError

P = ParamSpec("P")
R = TypeVar("R")

FAILED, USAGE, REQUEUE, INTERRUPTED, TERMINATED = 1, 2, 75, 130, 143
"""Exit codes: something could not be used or done; the command line is wrong; stopped by a scheduler's signal and
saved (EX_TEMPFAIL: run the same command again); stopped by Ctrl-C; stopped by SIGTERM."""

WARNINGS_SHOWN = 20

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def console() -> Console:
    """The terminal for results (stdout), made anew so that a redirected stdout is respected."""
    return Console(highlight=False)


def messages() -> Console:
    """The terminal for what is said on the way (stderr)."""
    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One plain line on stderr."""
    print(text, file=sys.stderr, flush=True)


def note_warnings(warnings: Sequence[str]) -> None:
    """Print what is odd about the data on stderr, one line each, at most `WARNINGS_SHOWN` of them."""
    for warning in warnings[:WARNINGS_SHOWN]:
        note(f"note: {warning}")
    if len(warnings) > WARNINGS_SHOWN:
        note(f"note: and {len(warnings) - WARNINGS_SHOWN} more")


def print_json(result: Any) -> None:
    """One JSON document on stdout; paths become strings."""
    print(json_module.dumps(result, indent=2, default=_plain), flush=True)


def print_json_line(result: Any) -> None:
    """One JSON document on one line of stdout."""
    print(json_module.dumps(result, default=_plain), flush=True)


def with_clear_errors(function: Callable[P, R]) -> Callable[P, R]:
    """A verb whose errors end in one line on stderr and a non-zero exit code; `debug=True` adds the traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, typer.Exit | typer.Abort | typer.BadParameter):
                raise
            if kwargs.get("debug") and not isinstance(error, KeyboardInterrupt):
                traceback.print_exc()
            raise typer.Exit(report_error(error)) from None

    return run


def report_error(error: BaseException) -> int:
    """Print an error as one line on stderr; returns the exit code it means."""
    if isinstance(error, KeyboardInterrupt):
        note("interrupted")
        return INTERRUPTED
    if isinstance(error, StoppedBySignalError):
        note(str(error))
        return REQUEUE
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # the reader of our stdout has gone (`| head`): nothing to say, and nothing more may be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    note(describe_error(error))
    return FAILED


def describe_error(error: BaseException) -> str:
    """The one line that an error is worth."""
    if isinstance(error, UserError):
        return f"error: {_one_line(error)}"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"error: {error.strerror}{where}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "error: out of memory; a smaller --batch-size or --size needs less"
    return f"internal error: {type(error).__name__}: {_one_line(error)}; run again with --debug for the traceback"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy's or torch's
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
