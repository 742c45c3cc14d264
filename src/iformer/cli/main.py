"""The command line: `iformer VERB`. Each verb is a function of a file of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from iformer._version import __version__
from iformer.cli.arguments import current_options
from iformer.cli.output import INTERRUPTED, REQUEUE, TERMINATED, USAGE, note, with_clear_errors

VERBS = {
    "quickstart": "quickstart",
    "info": "info",
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "export": "export",
    "bench": "bench",
    "convert": "convert",
    "paper": "paper",
    "doctor": "doctor",
}
"""Each verb, which is also the name of its module in `iformer.cli`, and its function there."""


class Verb(TyperCommand):
    """A verb that also takes the old spellings of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the verb's arguments; see `current_options`."""
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, current_options(args, known))


def build_app() -> typer.Typer:
    """The app with every verb. The verbs' modules import no torch until they are called."""
    app = typer.Typer(
        name="iformer",
        help="iFormer: train mobile vision networks on your images, export them with proof, measure honestly.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for verb, function in VERBS.items():
        module = importlib.import_module(f"iformer.cli.{verb}")
        app.command(verb, cls=Verb)(with_clear_errors(getattr(module, function)))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"iformer {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` where no arguments are given); returns the exit code."""
    try:
        with _clean_termination():
            code = build_app()(args=arguments, prog_name="iformer", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        note("interrupted")
        return INTERRUPTED
    except _Terminated:
        note("terminated")
        return REQUEUE if "train" in (sys.argv[1:] if arguments is None else arguments)[:1] else TERMINATED
    except _usage_error() as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "iformer"
        complaint = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        note(f"error: {complaint}; see: {command} --help")
        return USAGE
    return code if isinstance(code, int) else 0


class _Terminated(BaseException):
    """SIGTERM arrived; temporary files are removed on the way out."""


@contextlib.contextmanager
def _clean_termination() -> Iterator[None]:
    """Turn SIGTERM into `_Terminated` inside the block, unless it is handled already."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    process = os.getpid()

    def terminate(number: int, _frame: object) -> None:
        if os.getpid() == process:
            raise _Terminated
        signal.signal(number, signal.SIG_DFL)  # a forked child ends at once
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _usage_error() -> type[Exception]:
    """The base class of typer's complaints about a command line; typer exports only this child of it."""
    base = typer.BadParameter.__base__
    assert base is not None
    assert issubclass(base, Exception)
    return base
