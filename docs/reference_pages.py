"""MkDocs hook: the reference pages that are generated from the code, and code blocks with names.

API pages list the modules of a package for mkdocstrings, the command line's page comes from the typer app, the
recipe's page from the recipe dataclasses.
"""

from __future__ import annotations

import html
import importlib
import pkgutil
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from iformer.config.reference import recipe_fields
from iformer.tables import Markdown, markdown_table

PACKAGES = ("config", "layers", "models", "data", "training", "tasks", "deploy", "bench", "web", "api")
"""Packages of `iformer` with an API page each, in the order in which data goes through them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for name in PACKAGES:
        files.append(File.generated(config, f"reference/api/{name}.md", content=api_page(name)))
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    files.append(File.generated(config, "reference/recipe.md", content=recipe_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Remove the names of code blocks, which tests use: superfences takes a block with a name for text."""
    return re.sub(r"^(```\w+) [\w-]+$", r"\1", markdown, flags=re.MULTILINE)


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
        "This page is generated from the code: it is what `iformer VERB --help-all` prints.",
        "",
        "Results go to stdout, messages to stderr. `--json` prints the result as JSON. An error is one line on",
        "stderr; `--debug` adds the traceback.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | something could not be used or done; the line on stderr says what |",
        "| 2 | the command line is wrong |",
        "| 75 | stopped by SIGTERM, SIGUSR1 or SIGHUP and saved: run the same command again with `--resume` |",
        "| 130 | stopped by Ctrl-C |",
        "",
    ]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"iformer {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## iformer {name}", "", command.help or "", "", f"```text\niformer {name} {usage}\n```", ""]
        records = filter(None, (parameter.get_help_record(context) for parameter in command.params))
        rows = [(_code(names), _text(text)) for names, text in records]
        lines += [markdown_table(("option", "what it does"), rows, left=2), ""]
    return "\n".join(lines)


def recipe_page() -> str:
    """Return the page of all recipe fields and of the recipes in the package."""
    from iformer.config.recipe import Recipe
    from iformer.config.recipe_files import list_recipes
    from iformer.tasks.registry import TASKS

    header = ("field", "values", "default", "meaning")
    shared = {row[0] for row in _fields(Recipe)}
    lines = [
        "# Recipe fields",
        "",
        "A recipe is a YAML file of these fields. `iformer train --recipe NAME_OR_FILE` reads one, and",
        "`--set FIELD=VALUE` replaces a field: `--set augment.hflip=0.5`, or `--set hflip=0.5` for short. This",
        "page is generated from the code. `iformer info --recipe NAME_OR_FILE` prints a recipe's values.",
        "",
        "## Every task",
        "",
        markdown_table(header, _fields(Recipe), left=4),
        "",
    ]
    for name, task in TASKS.items():
        own = [row for row in _fields(task.recipe_class) if row[0] not in shared]
        lines += [
            f"## {name}",
            "",
            f"The default recipe of `--task {name}` is [`{task.default_recipe}`](#{task.default_recipe}).",
            "",
            markdown_table(header, own, left=4),
            "",
        ]
    lines += ["## Recipes in the package", ""]
    for name in list_recipes():
        text = (resources.files("iformer.config") / "recipes" / f"{name}.yaml").read_text().rstrip()
        lines += [f"### {name}", "", f"```yaml\n{text}\n```", ""]
    return "\n".join(lines)


def _fields(kind: type[Any]) -> Iterator[tuple[str, ...]]:
    """Yield name, allowed values, default and meaning of a recipe's fields."""
    for row in recipe_fields(kind):
        yield (
            _code(row.name),
            _text(row.allowed),
            _code(row.default) if row.default else "required",
            _text(row.doc),
        )


def _code(text: str) -> Markdown:
    """Return text as code in a table cell; MkDocs would show the backslash of an escaped pipe."""
    return Markdown(f"<code>{html.escape(' '.join(text.split())).replace('|', '&#124;')}</code>")


def _text(docs: str) -> Markdown:
    """Return a docstring or help text as a table cell; its code spans stay code."""
    return Markdown(" ".join(docs.split()).replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;"))
