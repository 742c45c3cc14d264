"""Options that messages name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command

import iformer
from iformer.cli.main import build_app

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")

OF_OTHERS = {
    "web/browser.py": {
        *("--headless", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--enable-unsafe-webgpu", "--no-sandbox", "--user-data-dir"),
    },
    "data/sources/elpv.py": {"--force-reinstall"},  # pip
    "training/records/provenance.py": {"--show-toplevel", "--porcelain"},  # git
    "cli/export.py": {"--directory"},  # python -m http.server
    "cli/main.py": {"--help"},
    "cli/arguments.py": {"--part"},  # an old spelling
}
"""Options of other programs."""


def texts(module: Path) -> Iterator[str]:
    """The string literals of a module, without docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    documentation = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node.value


def test_every_option_that_a_message_names_is_one_of_a_verb() -> None:
    package = Path(iformer.__file__).parent
    commands = get_command(build_app()).commands.values()  # type: ignore[attr-defined]
    options = [option for command in commands for option in command.params]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    known.add("--version")
    unknown = []
    found = set()
    for module in sorted(package.rglob("*.py")):
        name = module.relative_to(package).as_posix()
        for text in texts(module):
            named = set(_OPTION.findall(text))
            found |= named
            unknown += [f"{name}: {option}" for option in named - known - OF_OTHERS.get(name, set())]
    assert not unknown
    assert len(found & known) > 50
