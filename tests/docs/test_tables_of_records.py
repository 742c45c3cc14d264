"""The tables of the docs that are made from records: they agree with them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


def test_pages_and_records_agree(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0


def test_every_table_is_on_a_page(tables: ModuleType) -> None:
    placed = {
        (kind, name)
        for page in tables.pages()
        for kind, name in re.findall(r"<!-- (table|figure): ([\w-]+) -->", page.read_text())
    }
    made = {"table": tables.TABLES, "figure": tables.FIGURES}
    assert placed == {(kind, name) for kind, names in made.items() for name in names}


def test_a_changed_figure_is_found(tables: ModuleType) -> None:
    page = (ROOT / "docs/benchmarks/gpu.md").read_text()
    row = next(line for line in page.splitlines() if re.match(r"\| M \| [\d,]+ \|", line))
    changed = page.replace(row, re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), row, count=1), 1)
    assert tables.with_tables(changed) == page


@pytest.fixture
def several(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Records of three machines: the last one is known by its processor's name only."""
    machine_records = importlib.import_module("machine_records")
    known: dict[str, list[str]] = {"instructions": []}
    rows = [
        ({"fingerprint": "a", "cpu": "A", **known}, "CPU", {"ratio": 1.0}),
        ({"fingerprint": "b", "cpu": "B", **known}, "CPU", {"ratio": 2.0, "rows": [{"label": "x", "it": 5}]}),
        ({"fingerprint": "b?", "cpu": "B"}, "CPU", {"ratio": 4.0}),
        ({"fingerprint": "c", "cpu": "C"}, "CPU", {"ratio": 1.5}),
        ({"fingerprint": "a", "cpu": "A", **known}, "NVIDIA", {"ratio": 100.0}),
    ]
    records = [
        {"machine": machine, "device": device, "figures": found, "created": f"2026-11-{25 + len(found)}T08:00"}
        for machine, device, found in rows
    ]
    (tmp_path / "some.json").write_text(json.dumps({"records": records}))
    monkeypatch.setattr(machine_records, "RESULTS", tmp_path)
    return machine_records


def test_several_machines_give_a_median_and_a_range(several: ModuleType) -> None:
    assert several.values("some", several.at("ratio")) == {"a": [1.0], "b": [2.0, 4.0], "c": [1.5]}
    assert several.spread("some", several.at("ratio")) == "1.50x (1.00 to 4.00)"
    assert several.seen_on("some") == (
        "3 machines, 2026-11-26 to 2026-11-27; ratios are medians, with the range where 4 records differ"
    )
    # the fullest record is that of the second machine
    assert several.of_fullest("some", several.at("ratio")) == 2.0


def test_records_without_a_figure_do_not_count(several: ModuleType) -> None:
    assert several.spread("some", several.at("rows", "x", "it")) == "5.00x"


def test_other_threads_and_batches_are_rows_of_the_same_table(tables: ModuleType, tmp_path: Path) -> None:
    cpu_tables, machine_records = (importlib.import_module(name) for name in ("cpu_tables", "machine_records"))
    case = importlib.import_module("inference").case
    (*_, record) = machine_records.records("inference")
    names = [f"iformer_{size}" for size in "tsml"]
    of_m = record["figures"]["iformer_m"]
    record["figures"] = {name: record["figures"][name] for name in names}
    record["figures"] |= {case("iformer_m", threads, batch): of_m for threads, batch in ((2, 1), (1, 8), (2, 8))}
    (tmp_path / "inference.json").write_text(json.dumps({"records": [record]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_records, "RESULTS", tmp_path)
        rows = [line.split(" | ") for line in cpu_tables.TABLES["eager"]().splitlines() if line.startswith("| ")]
    labels = ["T", "S", "M", "L", "M, 2 threads", "M, batch 8", "M, 2 threads, batch 8"]
    assert [row[0] for row in rows[2:]] == [f"| {label}" for label in labels]
    assert rows[-1][1:] == rows[4][1:]
