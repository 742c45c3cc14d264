"""The picture of accuracy and latency: its networks and its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from iformer.errors import UserError
from iformer_paper import figures, pareto
from iformer_paper.pareto import Panel, draw_pareto, published


def test_at_least_fifteen_peers_and_the_iformers_of_table_3() -> None:
    rows = published()
    ours = [row for row in rows if not row.name.startswith("timm/")]
    assert [row.name for row in ours] == ["iformer_t", "iformer_s", "iformer_m", "iformer_l"]
    assert len(rows) - len(ours) >= 15
    assert len({row.label for row in rows}) == len(rows)
    by_name = {row.name: row for row in rows}
    assert by_name["iformer_m"].top1 == 80.4
    assert by_name["iformer_m"].phone_ms == 1.10
    assert by_name["timm/fastvit_sa12"].size == (256, 256)
    assert all(any(row.label.startswith(family) for family in figures.FAMILIES) for row in rows)


def test_a_panel_for_each_runtime_and_one_for_the_papers_phone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    kept = []
    save = pareto.save_figure

    def keep(figure: object, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)  # type: ignore[arg-type]

    monkeypatch.setattr(pareto, "save_figure", keep)
    times = {"iFormer-M": 30.0, "iFormer-T": 11.0, "RepViT-M1.1": 25.0, "matrix product": 9.0}
    named = {"iformer_m": 30.0, "iformer_t": 11.0, "timm/repvit_m1_1": 25.0}
    measured = [
        Panel(title="ONNX Runtime: measured", device="CPU X, 1 thread", median_ms=times),
        Panel(title="WebAssembly: measured", device="phone Y", median_ms=named),
        Panel(title="nothing of the paper", device="phone Z", median_ms={"mine": 1.0}),
    ]
    path = draw_pareto(measured, tmp_path / "pareto.png")
    with Image.open(path) as image:
        assert image.width > image.height
    panels = kept[0].axes  # type: ignore[attr-defined]
    assert len(panels) == 3
    assert "measured" in panels[1].get_title(loc="left")
    assert "CPU X" in panels[0].get_xlabel()
    assert "phone Y" in panels[1].get_xlabel()
    assert "the paper's numbers" in panels[2].get_title(loc="left")
    assert "not measured here" in panels[2].get_xlabel()
    assert panels[2].get_facecolor() != panels[0].get_facecolor()
    for panel in panels[:2]:
        assert sorted(x for line in panel.get_lines() for x in line.get_xdata()) == [11.0, 25.0, 30.0]


def test_nothing_of_the_paper_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="nothing to draw"):
        draw_pareto([Panel(title="mine", device="CPU X", median_ms={"mine": 3.0})], tmp_path / "pareto.png")
