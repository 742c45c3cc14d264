"""Options of `iformer train` that set a field of the recipe, generated from the recipe's fields and their docs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from iformer.cli.arguments import RECIPE
from iformer.config.checking import without_range
from iformer.config.recipe import Recipe
from iformer.config.reference import recipe_fields

F = TypeVar("F", bound=Callable[..., Any])


def recipe_options(
    kind: type[Recipe], options: Mapping[str, str], *, groups: Mapping[str, str]
) -> Callable[[F], F]:
    """Decorate a verb: its `**fields` become options that set fields of a recipe.

    Args:
        kind: the recipe class with the fields.
        options: name of each option -> name of its field. An option that is not given is None.
        groups: name of an option -> its group in the help; `RECIPE` for the others.
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
