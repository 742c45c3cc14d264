"""The tables of the docs that are made from records: they agree with them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_of_records", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_and_records_agree(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0


def test_every_table_is_on_a_page(tables: ModuleType) -> None:
    placed = {
        name for page in tables.pages() for name in re.findall(r"<!-- table: ([\w-]+) -->", page.read_text())
    }
    assert placed == set(tables.TABLES)


def test_a_changed_figure_is_found(tables: ModuleType) -> None:
    page = (ROOT / "docs/benchmarks/gpu.md").read_text()
    row = next(line for line in page.splitlines() if re.match(r"\| M \| [\d,]+ \|", line))
    changed = page.replace(row, re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), row, count=1), 1)
    assert tables.with_tables(changed) == page
