"""The pictures of accuracy and latency: their networks, their text and the places of their labels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from iformer.errors import UserError
from iformer_paper import pareto
from iformer_paper.pareto import FAMILIES, Panel, draw_pareto, published


def test_every_peer_that_timm_can_build_and_the_iformers_of_table_3() -> None:
    rows = published()
    ours = [row for row in rows if not row.name.startswith("timm/")]
    assert [row.name for row in ours] == ["iformer_t", "iformer_s", "iformer_m", "iformer_l"]
    assert len(rows) - len(ours) == 49
    assert len({row.label for row in rows}) == len(rows)
    by_name = {row.name: row for row in rows}
    assert by_name["iformer_m"].top1 == 80.4
    assert by_name["iformer_m"].phone_ms == 1.10
    assert by_name["timm/fastvit_sa12"].size == (256, 256)
    assert by_name["timm/resnet50"].size == (512, 512)
    assert by_name["timm/resnet50"].top1 is None
    assert by_name["timm/efficientformerv2_s1"].top1 is None, "it is in Table 4 only, with distillation"
    assert by_name["timm/mobilevitv2_100"].phone_ms is None


def test_each_family_in_the_picture_has_its_own_shape() -> None:
    found = {
        next((family for family in FAMILIES if row.label.startswith(family)), row.label)
        for row in published()
        if row.top1 is not None and row.name.startswith("timm/")
    }
    assert found == set(FAMILIES)
    assert len({(marker, filled) for marker, filled, _ in FAMILIES.values()}) == len(FAMILIES)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved meanwhile."""
    pytest.importorskip("matplotlib")
    found: list[Any] = []
    save = pareto.save_figure

    def keep(figure: Any, path: Path) -> Path:
        found.append(figure)
        return save(figure, path)

    monkeypatch.setattr(pareto, "save_figure", keep)
    return found


def test_a_panel_for_each_runtime_and_one_for_the_papers_phone(tmp_path: Path, kept: list[Any]) -> None:
    times = {"iFormer-M": 30.0, "iFormer-T": 11.0, "RepViT-M1.1": 25.0, "matrix product": 9.0, "ResNet50": 200.0}
    named = {"iformer_m": 30.0, "iformer_t": 11.0, "timm/repvit_m1_1": 25.0}
    measured = [
        Panel(title="ONNX Runtime: measured", device="CPU X, 1 thread", median_ms=times),
        Panel(title="WebAssembly: measured", device="phone Y", median_ms=named),
        Panel(title="nothing of the paper", device="phone Z", median_ms={"mine": 1.0}),
    ]
    paths = draw_pareto(measured, tmp_path / "pareto.png")
    assert [path.name for path in paths] == ["pareto.png", "pareto_narrow.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > image.height
    with Image.open(paths[1]) as image:
        assert 830 <= image.width < 1300
    panels = kept[0].axes
    assert len(panels) == 3
    assert "measured" in panels[1].get_title(loc="left")
    assert "CPU X" in panels[0].get_xlabel()
    assert "phone Y" in panels[1].get_xlabel()
    assert "the paper's numbers" in panels[2].get_title(loc="left")
    assert "not measured here" in panels[2].get_xlabel()
    assert panels[2].get_facecolor() != panels[0].get_facecolor()
    for panel in panels[:2]:
        assert sorted(x for line in panel.get_lines() for x in line.get_xdata()) == [11.0, 25.0, 30.0]
    narrow = kept[1].axes
    assert [panel.get_title(loc="left") for panel in narrow] == [
        "ONNX Runtime: measured",
        "iPhone 13: the paper's numbers",
    ]
    assert {text.get_text() for text in narrow[0].texts} == {"T", "M", "RepViT"}
    assert {text.get_text() for text in panels[0].texts} == {"T", "M", "RepViT-M1.1"}


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_labels_cover_neither_each_other_nor_markers(tmp_path: Path, kept: list[Any], each: bool) -> None:
    from matplotlib.text import Text

    times = {row.label: row.phone_ms or 5.0 for row in published()}
    panel = Panel(title="all", device="CPU X", median_ms=times)
    pareto._draw([panel], tmp_path / "a.png", panel_inches=(7.2, 6.6) if each else (4.15, 5.2), each=each)
    kept[0].draw_without_rendering()
    for axes in kept[0].axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) >= 4 + len(FAMILIES)
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        points = [point for line in axes.get_lines() for point in axes.transData.transform(line.get_xydata())]
        assert not [(box, point) for box in boxes for point in points if box.contains(*point)]
        assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_nothing_of_the_paper_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="nothing to draw"):
        draw_pareto([Panel(title="mine", device="CPU X", median_ms={"mine": 3.0})], tmp_path / "pareto.png")
