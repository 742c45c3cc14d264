"""Plot the paper's accuracies against latencies measured here and, in another panel, the paper's latencies."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iformer.config.variants import list_models
from iformer.dependencies import require
from iformer.errors import UserError
from iformer.training.records.figures import FAINT, INK, new_figure, save_figure
from iformer_paper.figures import tidy
from iformer_paper.labels import Label, place_labels
from iformer_paper.peers import peers
from iformer_paper.printed import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = "#D55E00"
_PEER, _PEER_TEXT = "#78838f", "#4a5562"
_PHONE = "#F4EFE6"
"""Background colour of the panel with the paper's latencies."""

_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
"""Labelled ticks of the latency axes, in milliseconds."""

_TABLES = {3, 18}
"""Tables with the accuracies in the picture: ImageNet-1k, all networks trained on it alone."""

FAMILIES: dict[str, tuple[str, bool, str]] = {
    "MNV4": ("s", True, "MobileNetV4"),
    "RepViT": ("D", True, "RepViT"),
    "FastViT": ("^", True, "FastViT"),
    "MobileOne": ("v", True, "MobileOne"),
    "SwiftFormer": ("P", True, "SwiftFormer"),
    "GhostNetV3": ("<", True, "GhostNetV3"),
    "MobileNetV2": ("o", False, "MobileNetV2"),
    "MobileNetV3": ("d", True, "MobileNetV3"),
    "EfficientViT": ("X", True, "EfficientViT"),
    "MobileViTV2": ("s", False, "MobileViTV2"),
    "MobileViT": (">", True, "MobileViT"),
    "SHViT": ("D", False, "SHViT"),
    "EfficientNet": ("*", True, "EfficientNet"),
    "LowFormer": ("p", True, "LowFormer"),
}
"""Marker, whether it is filled, and name of a family, by the beginning of its networks' names."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """An iFormer of Table 3, or a peer that timm can build at the paper's input size."""

    label: str
    """Name of the network in the paper."""
    name: str
    """Name of the network for `iformer bench`: an iFormer size, or `timm/NAME`."""
    size: tuple[int, int]
    top1: float | None
    """ImageNet-1k top-1 accuracy in percent, as printed in Table 3 or 18; None if neither has the network."""
    phone_ms: float | None
    """Latency on an iPhone 13 in milliseconds, as printed in the paper; None if it could not be measured."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Latencies of one device in one runtime, drawn in one panel."""

    title: str
    device: str
    median_ms: Mapping[str, float]
    """Median latency in milliseconds, by the network's label or name in `iformer bench`."""

    @property
    def times(self) -> dict[str, float]:
        """Latencies of the networks of Tables 3 and 18 in milliseconds, by `Published.label`."""
        rows = [row for row in published() if row.top1 is not None]
        labels = {row.name.removeprefix("timm/"): row.label for row in rows}
        found = {labels.get(name.removeprefix("timm/"), name): time for name, time in self.median_ms.items()}
        return {row.label: found[row.label] for row in rows if row.label in found}


def published() -> list[Published]:
    """Return the iFormers of Table 3, and each peer of the paper that timm can build at the paper's size."""
    found = [
        Published(
            label=row["model"],
            name=name,
            size=(int(row["resolution"]),) * 2,
            top1=float(row["top1_pct"]),
            phone_ms=float(row["latency_ms"]),
        )
        for row in read_rows("table_03_imagenet")
        if (name := row["model"].lower().replace("-", "_")) in list_models()
    ]
    for peer in peers():
        if not peer.reason:
            accuracies = (peer.top1 or peer.distilled_top1) if _TABLES & set(peer.tables) else ()
            found.append(
                Published(
                    label=peer.label,
                    name=f"timm/{peer.timm_name}",
                    size=(peer.side, peer.side),
                    top1=accuracies[0] if accuracies else None,
                    phone_ms=peer.latency_ms,
                )
            )
    return found


def draw_pareto(measured: Sequence[Panel], path: Path) -> list[Path]:
    """Draw accuracy against latency, once wide and once narrow; return the paths of the two pictures.

    The wide picture, `path`, has a panel for each device and runtime and one with the paper's phone latencies, and
    names each network. The narrow one, with `_narrow` in its name, is legible at 830 pixels: it has the first of
    these panels and the phone's, and names families of networks.

    Args:
        measured: the measured panels; panels without any network of Tables 3 and 18 are left out.
        path: path of the PNG file.

    Raises:
        UserError: no network of the paper's Table 3 or 18 was measured.
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    measured = [panel for panel in measured if panel.times]
    if not measured:
        raise UserError("no network of the paper's Tables 3 and 18 was measured; nothing to draw")
    return [
        _draw(measured, path, panel_inches=(7.2, 6.6), each=True),
        _draw(measured[:1], path.with_stem(f"{path.stem}_narrow"), panel_inches=(4.15, 5.2), each=False),
    ]


def _draw(measured: Sequence[Panel], path: Path, *, panel_inches: tuple[float, float], each: bool) -> Path:
    rows = [row for row in published() if any(row.label in panel.times for panel in measured)]
    width, height = panel_inches
    figure = new_figure(width * (len(measured) + 1), height)
    panels = list(figure.subplots(1, len(measured) + 1, sharey=True, squeeze=False)[0])
    phone = panels[-1]
    phone.set_facecolor(_PHONE)
    titles = [panel.title for panel in measured] + ["iPhone 13: the paper's numbers"]
    axis_labels = [f"ms, batch 1: {panel.device}" for panel in measured] + [
        "ms, batch 1: printed, not measured here"
    ]
    times = [panel.times for panel in measured]
    times.append({row.label: row.phone_ms for row in rows if row.phone_ms is not None})
    for axes, title, label, found in zip(panels, titles, axis_labels, times, strict=True):
        _lines(axes, rows, found)
        axes.set_title(title, loc="left", color=INK, weight="bold", fontsize=10)
        axes.set_xlabel(textwrap.fill(label, int(13 * width)), color=INK, fontsize=9)
    panels[0].set_ylabel("ImageNet-1k top-1, %, as the paper prints it", color=INK, fontsize=9)
    if not each:
        handles, names = phone.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=6, frameon=False, labelcolor=FAINT, fontsize=8
        )
    figure.draw_without_rendering()  # the layout is final, so labels find their places
    for axes, found in zip(panels, times, strict=True):
        place_labels(axes, _labels(rows, found, each=each), marker=7)
    return save_figure(figure, path)


def _groups(rows: Sequence[Published], times: Mapping[str, float]) -> dict[str, list[tuple[float, float, str]]]:
    """Return latency, accuracy and name of each network by family (iFormers: empty), the fastest first."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        if row.label in times and row.top1 is not None:
            family = next((family for family in FAMILIES if row.label.startswith(family)), "")
            found.setdefault(family, []).append((times[row.label], row.top1, row.label))
    return {family: sorted(points) for family, points in found.items()}


def _lines(axes: Axes, rows: Sequence[Published], times: Mapping[str, float]) -> None:
    from matplotlib.ticker import NullLocator

    for family, points in _groups(rows, times).items():
        marker, filled, name = FAMILIES.get(family, ("o", True, "iFormer"))
        colour = _PEER if family else _OURS
        axes.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], marker=marker, color=colour, label=name,
            zorder=3 if family else 4, linewidth=0.9 if family else 2.6, markersize=6.5 if family else 8,
            markerfacecolor=colour if filled else "white", markeredgecolor="white" if filled else colour,
            markeredgewidth=0.6 if filled else 1.2,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(0.08)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    tidy(axes)
    axes.tick_params(labelsize=8.5, labelcolor=FAINT)


def _labels(rows: Sequence[Published], times: Mapping[str, float], *, each: bool) -> list[Label]:
    groups = _groups(rows, times)
    ours = [
        Label(text=name.removeprefix("iFormer-"), points=[(x, y)], colour=_OURS, size=11, bold=True)
        for x, y, name in groups.pop("", [])
    ]
    if each:
        theirs = [
            Label(text=name, points=[(x, y)], colour=_PEER_TEXT, size=7.5)
            for points in groups.values()
            for x, y, name in points
        ]
    else:
        theirs = [
            Label(text=FAMILIES[family][2], points=[(x, y) for x, y, _ in points], colour=_PEER_TEXT, size=8)
            for family, points in sorted(groups.items(), key=lambda group: len(group[1]))
        ]
    return [*ours, *theirs]
