"""Plot the paper's accuracies against latencies measured here and, in another panel, the paper's latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iformer.config.variants import list_models
from iformer.dependencies import require
from iformer.errors import UserError
from iformer.training.records.figures import INK, new_figure, save_figure
from iformer_paper.figures import FAMILIES, family_of, tidy
from iformer_paper.printed import PrintedRow, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PHONE = "#F4EFE6"
"""Background colour of the panel with the paper's latencies."""

_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
"""Labelled ticks of the latency axes, in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network of Table 3 that this package or timm can build."""

    label: str
    """Name of the network in the paper."""
    name: str
    """Name of the network for `iformer bench`: an iFormer size, or `timm/NAME`."""
    size: tuple[int, int]
    top1: float
    """ImageNet-1k top-1 accuracy in percent, as printed in the paper."""
    phone_ms: float
    """Latency on an iPhone 13 in milliseconds, as printed in the paper."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Latencies of one device in one runtime, drawn in one panel."""

    title: str
    device: str
    median_ms: Mapping[str, float]
    """Median latency in milliseconds, by the network's label or name in `iformer bench`."""

    @property
    def times(self) -> dict[str, float]:
        """Latencies of the networks of Table 3 in milliseconds, by `Published.label`."""
        labels = {row.name.removeprefix("timm/"): row.label for row in published()}
        found = {labels.get(name.removeprefix("timm/"), name): time for name, time in self.median_ms.items()}
        return {label: found[label] for label in labels.values() if label in found}


def published() -> list[Published]:
    """Return the iFormers and peers of Table 3 that this package or timm can build, with the printed values."""
    found = [
        _published(row, row["model"].lower().replace("-", "_"), row["latency_ms"])
        for row in read_rows("table_03_imagenet")
        if row["model"].lower().replace("-", "_") in list_models()
    ]
    for row in read_rows("peers"):
        if "3" in row["tables"].split(";") and row["timm_name"]:
            named = row | {"model": row["paper_name"]}
            found.append(_published(named, f"timm/{row['timm_name']}", row["latency_ms_iphone13"]))
    return found


def _published(row: PrintedRow, name: str, phone_ms: str) -> Published:
    side = int(row["resolution"])
    return Published(
        label=row["model"], name=name, size=(side, side), top1=float(row["top1_pct"]), phone_ms=float(phone_ms)
    )


def draw_pareto(measured: Sequence[Panel], path: Path) -> Path:
    """Draw one panel per device and runtime, and one panel with the paper's phone latencies; return `path`.

    Args:
        measured: the measured panels; panels without any network of Table 3 are left out.
        path: path of the PNG file.

    Raises:
        UserError: no network of the paper's Table 3 was measured.
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    measured = [panel for panel in measured if panel.times]
    rows = [row for row in published() if any(row.label in panel.times for panel in measured)]
    if not rows:
        raise UserError("no network of the paper's Table 3 was measured; nothing to draw")
    figure = new_figure(7.2 * (len(measured) + 1), 6.6)
    panels = list(figure.subplots(1, len(measured) + 1, sharey=True, squeeze=False)[0])
    for axes, panel in zip(panels, measured, strict=False):
        _panel(axes, rows, panel.times)
        axes.set_title(panel.title, loc="left", color=INK, weight="bold")
        axes.set_xlabel(f"measured latency, ms, batch 1: {panel.device}", color=INK)
    phone = panels[-1]
    phone.set_facecolor(_PHONE)
    _panel(phone, rows, {row.label: row.phone_ms for row in rows})
    phone.set_title("iPhone 13, Core ML: the paper's numbers", loc="left", color=INK, weight="bold")
    phone.set_xlabel("latency on the paper's phone, ms, batch 1: printed, not measured here", color=INK)
    panels[0].set_ylabel("ImageNet-1k top-1, %, as the papers print it", color=INK)
    handles, labels = phone.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, labelcolor=INK)
    return save_figure(figure, path)


def _panel(axes: Axes, rows: Sequence[Published], times: Mapping[str, float]) -> None:
    from matplotlib.ticker import NullLocator

    for family, (colour, marker, label) in FAMILIES.items():
        points = sorted(
            (times[row.label], row.top1, row.label)
            for row in rows
            if row.label in times and family_of(row.label) == family
        )
        if not points:
            continue
        ours = family == "iFormer"
        axes.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], marker=marker, color=colour, label=label,
            zorder=4 if ours else 3, linewidth=2.6 if ours else 1.2, markersize=9 if ours else 7,
            markeredgecolor="white",
        )  # fmt: skip
        if ours:
            for x, y, name in points:
                axes.annotate(
                    name.removeprefix("iFormer-"), (x, y), xytext=(-7, 7), textcoords="offset points", ha="right",
                    fontsize=11, color=colour, weight="bold",
                )  # fmt: skip
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    tidy(axes)
