"""MkDocs hook: the reference pages that are generated from the code.

API pages list the modules of a package for mkdocstrings, the command line's page comes from the typer app, the
recipe's page from the recipe dataclasses.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from importlib import resources
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGES = ("config", "layers", "models", "data", "training", "tasks", "deploy", "bench")
"""Packages of `iformer` with an API page each, in the order in which data goes through them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for name in PACKAGES:
        files.append(File.generated(config, f"reference/api/{name}.md", content=api_page(name)))
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    files.append(File.generated(config, "reference/recipe.md", content=recipe_page()))
    return files


def api_page(name: str) -> str:
    """Return the page of one package: a heading and its modules' docstrings."""
    package = importlib.import_module(f"iformer.{name}")
    summary = (package.__doc__ or "").strip()
    blocks = [f"::: {module}\n    options:\n      heading_level: 2\n" for module in _modules(package.__name__)]
    return "\n".join([f"# iformer.{name}", "", summary, "", *blocks])


def _modules(package: str) -> Iterator[str]:
    """Yield the public modules of a package that define something public, depth first."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if found.name.rpartition(".")[2].startswith("_"):
            continue
        if found.ispkg:
            yield from _modules(found.name)
        else:
            yield found.name


def cli_page() -> str:
    """Return the page of all verbs with their arguments and options."""
    from iformer.cli.main import build_app

    group: Any = typer.main.get_command(build_app())
    lines = [
        "# Command line",
        "",
        "This page is generated from the code: it is what `iformer VERB --help` prints.",
        "",
        "Results go to stdout, messages to stderr. `--json` prints the result as JSON. An error is one line on",
        "stderr; `--debug` adds the traceback.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | something could not be used or done; the line on stderr says what |",
        "| 2 | the command line is wrong |",
        "| 75 | stopped by SIGTERM or SIGUSR1 and saved: run the same command again with `--resume` |",
        "| 130 | stopped by Ctrl-C |",
        "",
    ]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"iformer {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## iformer {name}", "", command.help or "", "", f"```text\niformer {name} {usage}\n```", ""]
        rows = [parameter.get_help_record(context) for parameter in command.params]
        lines += _table(("option", "what it does"), [(f"`{names}`", text) for names, text in filter(None, rows)])
    return "\n".join(lines)


def recipe_page() -> str:
    """Return the page of all recipe fields and of the recipes in the package."""
    from iformer.config.recipe import DEFAULT_RECIPES, list_recipes, recipe_class

    lines = [
        "# Recipe fields",
        "",
        "A recipe is a YAML file of these fields. `iformer train --recipe NAME_OR_FILE` reads one, and",
        "`--set FIELD=VALUE` replaces a field. This page is generated from the code.",
        "",
    ]
    seen: set[str] = set()
    for task, default in DEFAULT_RECIPES.items():
        fields = list(_fields(recipe_class(task)))
        title = f"## Fields of every task, as `{task}` has them" if not seen else f"## Further fields of `{task}`"
        lines += [title, "", f"The default recipe of `--task {task}` is [`{default}`](#{default}).", ""]
        new = [row for row in fields if row[0] not in seen]
        lines += _table(("field", "type", "default", "meaning"), new)
        seen |= {row[0] for row in fields}
    lines += ["## Recipes in the package", ""]
    folder = resources.files("iformer.config") / "recipes"
    for name in list_recipes():
        lines += [f"### {name}", "", "```yaml", (folder / f"{name}.yaml").read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def _fields(recipe: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and documentation of the fields of a dataclass and its bases."""
    docs: dict[str, griffe.Attribute] = {}
    for base in reversed(recipe.__mro__[:-1]):
        members = griffe.load(base.__module__)[base.__name__].members
        docs |= {name: member for name, member in members.items() if member.is_attribute}
    for field in dataclasses.fields(recipe):
        text = docs[field.name].docstring
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        yield f"`{field.name}`", f"`{field.type}`", default, "" if text is None else text.value


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table; line breaks become spaces."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|").replace("[", "\\[") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]
