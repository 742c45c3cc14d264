"""The limits of the layout: lines of a file, modules of a folder (docs/concepts/architecture.md)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import iformer

SOURCE = Path(iformer.__file__).parent
MOST_LINES, MOST_MODULES = 400, 14
ONE_PER_ENTRY = ("layers", "cli")
"""Folders with one module for each operation or verb, however many there are."""


def test_no_file_is_too_long() -> None:
    lines = {str(path.relative_to(SOURCE)): len(path.read_bytes().splitlines()) for path in SOURCE.rglob("*.py")}
    assert lines
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_folder_has_too_many_modules() -> None:
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    folders = Counter(str(path.parent.relative_to(SOURCE)) for path in modules)
    assert folders.keys() >= {*ONE_PER_ENTRY, "tasks", "models"}
    too_full = {name: count for name, count in folders.items() if count > MOST_MODULES}
    assert too_full.keys() <= set(ONE_PER_ENTRY)
