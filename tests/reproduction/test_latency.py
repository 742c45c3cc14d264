"""Latencies of the paper's networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from iformer.errors import UserError
from iformer_paper.ablations import ABLATIONS
from iformer_paper.figures import draw_figure
from iformer_paper.latency import HOW, measure_latencies, with_latencies
from iformer_paper.tables import paper_table, to_csv
from tiny.networks import tiny_config
from tiny.packages import need_packages

need_packages("onnxruntime", "onnxscript")


def test_each_row_of_our_networks_gets_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tiny_config(name="small"), tiny_config(name="large")
    monkeypatch.setitem(ABLATIONS, 1, {"MHA Baseline": large, "SHA Baseline": small})
    table = with_latencies(paper_table(1), rounds=2)
    rows = [row for section in table.sections for row in section.rows]
    assert [row.name for row in rows] == ["MHA Baseline", "SHA Baseline"]
    assert all(row.measured_ms is not None and row.measured_ms > 0 for row in rows)
    assert rows[0].measured_ms != rows[1].measured_ms
    assert "measured_ms" in to_csv(table).splitlines()[0]
    assert any(HOW in note for note in table.notes)


@pytest.mark.parametrize("number", [5, 9, 17])
def test_a_table_without_networks_at_224_stays(number: int) -> None:
    table = paper_table(number)
    assert with_latencies(table) is table


@pytest.mark.sweep
def test_times_are_of_the_asked_networks_and_rounds() -> None:
    timings = measure_latencies({"one": tiny_config(), "two": tiny_config()}, size=64, rounds=3)
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"one": 3, "two": 3}


def test_figure_2_has_a_panel_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = SimpleNamespace(median=lambda _: 0.0123)
    monkeypatch.setattr("iformer_paper.figures.measure_latencies", lambda _: measured)
    drawn = draw_figure(2, tmp_path, latency=True)
    assert {value["measured_ms"] for value in drawn.values} == {12.3}
    with pytest.raises(UserError, match="latency is for figure 2"):
        draw_figure(3, tmp_path, latency=True)
