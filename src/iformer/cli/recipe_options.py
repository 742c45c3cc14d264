"""Options of `iformer train` that set recipe fields, generated from the fields and their docstrings."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from iformer.cli.arguments import RECIPE
from iformer.config.checking import without_range
from iformer.config.recipe import Recipe
from iformer.config.reference import recipe_fields
from iformer.tasks.registry import TASKS

F = TypeVar("F", bound=Callable[..., Any])


def recipe_options(
    kind: type[Recipe], options: Mapping[str, str], *, groups: Mapping[str, str]
) -> Callable[[F], F]:
    """Return a decorator that turns the `**fields` of a verb into options that set recipe fields.

    Args:
        kind: the recipe class with the fields.
        options: option name -> field name. The verb gets None for an option that is not given.
        groups: option name -> group in the help; `RECIPE` for options that are not listed.
    """
    rows = {row.name: row for row in recipe_fields(kind)}

    def decorate(function: F) -> F:
        signature = inspect.signature(function, eval_str=True)
        generated = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    without_range(rows[field].hint) | None,
                    typer.Option(
                        *([f"--{name.replace('_', '-')}"] if rows[field].hint is bool else []),
                        help=f"{rows[field].summary}.",
                        rich_help_panel=groups.get(name, RECIPE),
                    ),
                ],
            )
            for name, field in options.items()
        ]
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        function.__signature__ = signature.replace(parameters=[*own, *generated])  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *generated]}
        return function

    return decorate


def explain_option(verb: str, option: str) -> str:
    """Return a hint for an unknown option of a verb that resembles a recipe field; else an empty string."""
    fields: dict[str, str] = {}
    for row in TASKS.values():
        if row.verb == verb:
            for field in recipe_fields(row.recipe_class):
                for name in (field.name.replace(".", "_"), field.name.rpartition(".")[2]):
                    fields.setdefault(name, field.name)
    nearest = difflib.get_close_matches(option.lstrip("-").replace("-", "_"), fields, n=1)
    return f"it may be a field of the recipe: --set {fields[nearest[0]]}=VALUE" if nearest else ""
