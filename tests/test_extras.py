"""Each optional package that the code imports comes with the extra that its error message names."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from iformer.cli.doctor import PARTS
from iformer.deploy.runtimes.registry import RUNTIMES

ROOT = Path(__file__).resolve().parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
CARRIED = {"pyarrow": "datasets", "torchao": "executorch"}
"""Packages that another package of the extra installs."""


def packages(extra: str) -> set[str]:
    return {re.split(r"[<>=\[]", requirement)[0].replace("-", "_") for requirement in EXTRAS[extra]}


def required(path: Path) -> Iterator[tuple[str, str]]:
    """Return the module and the extra of each call of `require` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            (module,), (extra,) = node.args, (word.value for word in node.keywords if word.arg == "extra")
            if isinstance(module, ast.Constant):
                name = path.stem if isinstance(extra, ast.Name) else ast.literal_eval(extra)
                yield str(module.value).partition(".")[0], name


def test_required_packages_come_with_the_extra_named() -> None:
    calls = {
        call
        for folder in ("src", "reproduction")
        for path in (ROOT / folder).rglob("*.py")
        for call in required(path)
    }
    assert len(calls) >= 20
    for module, extra in calls:
        assert extra in EXTRAS, f"require({module!r}) names the extra {extra}, which does not exist"
        assert CARRIED.get(module, module) in packages(extra), (module, extra)


def test_doctor_lists_the_extras_and_their_packages() -> None:
    assert PARTS.keys() == EXTRAS.keys() - {"all", "docs", "dev"}
    for name, (needed, _) in PARTS.items():
        assert {CARRIED.get(package, package).replace("-", "_") for _, package in needed} <= packages(name)
    assert RUNTIMES.keys() <= PARTS.keys()


def test_all_installs_every_extra() -> None:
    (everything,) = EXTRAS["all"]
    assert set(everything.removeprefix("iformer[").removesuffix("]").split(",")) == EXTRAS.keys() - {
        "all",
        "docs",
        "dev",
    }


def test_extras_of_the_docs_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    named = {
        (path.name, extra)
        for path in pages
        for found in re.findall(r"(?:iformer|['\" ]\.)\[([a-z0-9,]+)\]", path.read_text())
        for extra in found.split(",")
    }
    assert ("phone.md", "web") in named
    assert {extra for _, extra in named} <= EXTRAS.keys(), named
