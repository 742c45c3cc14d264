"""The command line: `iformer VERB`. Each verb is a function in its own module."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from iformer._version import __version__
from iformer.cli.arguments import MORE, current_options
from iformer.cli.output import (
    REQUEUE,
    USAGE,
    Terminated,
    drop_unwritable_text,
    note,
    process_settings,
    report_error,
    say,
    with_clear_errors,
)
from iformer.cli.recipe_options import explain_option
from iformer.errors import UserError

VERBS = {
    "quickstart": "quickstart",
    "info": "info",
    "train": "train",
    "pretrain": "pretrain",
    "eval": "evaluate",
    "predict": "predict",
    "demo": "demo",
    "export": "export",
    "bench": "bench",
    "convert": "convert",
    "push": "push",
    "paper": "paper",
    "doctor": "doctor",
}
"""Function of each verb, by the verb's name, which is also the name of its module in `iformer.cli`."""


HELP_ALL = "--help-all"


class Verb(TyperCommand):
    """A verb that also accepts old spellings of its options. Rich draws a verb's help, but not the app's help."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "rich_markup_mode": "rich"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the verb's arguments after replacing old spellings. `--help-all` prints the whole help."""
        if HELP_ALL in args:
            ctx.meta[HELP_ALL] = True
            self.format_help(ctx, ctx.make_formatter())
            raise typer.Exit
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, current_options(args, known))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help. Without `--help-all`, the options of the group `MORE` are not listed, only counted."""
        more = [option for option in self.params if getattr(option, "rich_help_panel", None) == MORE]
        if not more or ctx.meta.get(HELP_ALL):
            super().format_help(ctx, formatter)
            return
        epilog = self.epilog
        try:
            for option in more:
                option.hidden = True  # type: ignore[attr-defined]
            self.epilog = f"{HELP_ALL} shows {len(more)} more options."
            super().format_help(ctx, formatter)
        finally:
            self.epilog = epilog
            for option in more:
                option.hidden = False  # type: ignore[attr-defined]


def build_app() -> typer.Typer:
    """Return the app with every verb. A verb's module imports torch only when the verb is called."""
    app = typer.Typer(
        name="iformer",
        help="iFormer: train mobile vision networks on your images, export them with proof, measure honestly.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich would take most of the time of `iformer --help`
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for verb, function in VERBS.items():
        module = importlib.import_module(f"iformer.cli.{verb}")
        app.command(verb, cls=Verb)(with_clear_errors(getattr(module, function)))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"iformer {__version__}")
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
    """Run a command line and return the exit code.

    If `arguments` is None, `sys.argv` is used, and the process is expected to end afterwards.
    """
    try:
        return _exit_code(arguments)
    finally:
        drop_unwritable_text()
        if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Ctrl-C while the interpreter ends would print a traceback; the second one ends the process at once
            signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        return report_error(UserError("the working folder was removed; change to another one"))
    try:
        with process_settings():
            code = build_app()(args=arguments, prog_name="iformer", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return report_error(KeyboardInterrupt())
    except Terminated as error:
        given = sys.argv[1:] if arguments is None else arguments
        code = report_error(error)
        return REQUEUE if "train" in given[:1] else code  # the state is saved: run the same command again
    except _usage_error() as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "iformer"
        complaint = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        if context and not getattr(error, "possibilities", None):
            hint = explain_option(context.info_name or "", getattr(error, "option_name", ""))
            complaint += f"; {hint}" if hint else ""
        note(f"error: {complaint}; see: {command} --help")
        return USAGE
    except (OSError, UserError) as error:  # from --version and --install-completion; verbs report their own
        return report_error(error)
    return code if isinstance(code, int) else 0


def _usage_error() -> type[Exception]:
    """Return the base class of typer's usage errors. Typer exports only the subclass `BadParameter`."""
    base = typer.BadParameter.__base__
    assert base is not None
    assert issubclass(base, Exception)
    return base
