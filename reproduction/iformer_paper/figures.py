"""Redraw Figures 1, 2 and 3 of the paper, in the colour-blind safe palette of Okabe and Ito."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iformer.dependencies import require
from iformer.errors import UserError
from iformer.training.records.figures import FAINT, INK, new_figure, save_figure
from iformer_paper.heads import LayerSimilarity, TrainedHeads, head_similarity
from iformer_paper.ladder import LADDER
from iformer_paper.latency import measure_latencies
from iformer_paper.printed import SOURCE, figure_2_rows, figure_notes, read_rows
from iformer_paper.tables import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GRID = "#e3e7eb"
_OURS, _BLUE, _SKY, _GREEN = "#D55E00", "#0072B2", "#56B4E9", "#009E73"


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """The file of a figure and the plotted values."""

    path: Path
    values: list[dict[str, Any]]
    notes: tuple[str, ...]


def draw_figure(
    number: int, folder: Path, *, trained: TrainedHeads | None = None, latency: bool = False
) -> DrawnFigure:
    """Draw a figure of the paper into `folder`, as `figure_<number>.png`.

    Args:
        number: number of the figure: 1, 2 or 3.
        folder: an existing folder.
        trained: Figure 3 only: a trained network to draw next to the same network with random weights.
        latency: Figure 2 only: also measure the latency of each step's network on this machine.

    Raises:
        UserError: the figure does not exist, or an option belongs to another figure.
        MissingDependencyError: matplotlib is not installed.
    """
    figures: dict[int, Callable[[], tuple[Figure, list[dict[str, Any]]]]] = {
        1: _figure_1,
        2: partial(_figure_2, latency=latency),
        3: partial(_figure_3, trained),
    }
    if number not in figures:
        raise UserError(f"figure {number} is not drawn here; the figures are 1, 2 and 3")
    if trained is not None and number != 3:
        raise UserError(f"figure {number} shows no network's weights; a trained network is for figure 3")
    if latency and number != 2:
        raise UserError(f"figure {number} is not measured here; latency is for figure 2")
    require("matplotlib", extra="bench")
    figure, values = figures[number]()
    return DrawnFigure(
        path=save_figure(figure, folder / f"figure_{number}.png"), values=values, notes=tuple(figure_notes(number))
    )


# ------------------------------------------------------------------------------------ figure 1

FAMILIES: dict[str, tuple[str, str, str]] = {
    "iFormer": (_OURS, "o", "iFormer"),
    "MNV4": (_BLUE, "s", "MobileNetV4"),
    "RepViT": (_GREEN, "D", "RepViT"),
    "FastViT": ("#CC79A7", "^", "FastViT"),
    "MobileOne": ("#7a7a7a", "v", "MobileOne"),
    "SwiftFormer": (_SKY, "P", "SwiftFormer"),
    "SBCFormer": ("#E69F00", "X", "SBCFormer"),
    "GhostNetV3": ("#4d4d4d", "<", "GhostNetV3"),
    "EfficientMod": ("#8c6d31", ">", "EfficientMod"),
    "MobileNetV2": ("#a6a6a6", "h", "MobileNetV2"),
    "MobileNetV3": ("#a6a6a6", "d", "MobileNetV3"),
    "EfficientViT": ("#333333", "H", "EfficientViT"),
    "Mobile-Former": ("#333333", "p", "Mobile-Former"),
    "MobileViT": ("#333333", "s", "MobileViT"),
}
"""Colour, marker and label by the prefix of a network's name. Families with few or older networks are gray."""

_LABELLED = (
    "MobileNetV4",
    "MobileOne",
    "EfficientMod",
    "MobileNetV2",
    "EfficientViT",
    "Mobile-Former",
    "MobileViT",
)
"""Families labelled at the end of their line. The legend lists all families."""


def _figure_1() -> tuple[Figure, list[dict[str, Any]]]:
    rows = [row for row in read_rows("table_03_imagenet") if _is_number(row["latency_ms"])]
    figure = new_figure(11.5, 6.8)
    axes = figure.subplots()
    for family, (colour, marker, label) in FAMILIES.items():
        points = sorted(
            (float(row["latency_ms"]), float(row["top1_pct"])) for row in rows if family_of(row["model"]) == family
        )
        ours = family == "iFormer"
        axes.plot(
            *zip(*points, strict=True), marker=marker, color=colour, label=label, zorder=4 if ours else 3,
            linewidth=2.6 if ours else 1.2, markersize=9 if ours else 7, markeredgecolor="white",
        )  # fmt: skip
        if label in _LABELLED:
            alone = len(points) == 1
            axes.annotate(
                label, points[-1], xytext=(0, -17) if alone else (10, -4), textcoords="offset points",
                ha="center" if alone else "left", fontsize=10, color=FAINT,
            )  # fmt: skip
    for row in rows:
        if family_of(row["model"]) == "iFormer":
            axes.annotate(
                f"{row['model'].removeprefix('iFormer-')}  {row['top1_pct']}",
                (float(row["latency_ms"]), float(row["top1_pct"])),
                xytext=(-8, 8), textcoords="offset points", ha="right", fontsize=11, color=_OURS, weight="bold",
            )  # fmt: skip
    axes.set_xlim(0.3, 4.2)
    axes.set_xlabel("latency on an iPhone 13, ms, batch 1 (the paper's measurement, not ours)", color=INK)
    axes.set_ylabel("ImageNet-1k top-1, %", color=INK)
    axes.set_title(
        f"Accuracy against the paper's phone latency (Table 3 of {SOURCE})", loc="left", color=INK, weight="bold"
    )
    tidy(axes)
    axes.legend(loc="lower right", ncols=2, frameon=False, labelcolor=INK, fontsize=10)
    values = [
        {"model": row["model"], "latency_ms": float(row["latency_ms"]), "top1_pct": float(row["top1_pct"])}
        for row in rows
    ]
    return figure, values


def family_of(name: str) -> str:
    """Return the key of `FAMILIES` for a network's name."""
    return next(family for family in FAMILIES if name.startswith(family))


# ------------------------------------------------------------------------------------ figure 2


def _figure_2(*, latency: bool) -> tuple[Figure, list[dict[str, Any]]]:
    rows = figure_2_rows()
    measured = measure_latencies({step.label: step.network for step in LADDER}) if latency else None
    values: list[dict[str, Any]] = []
    for row, step in zip(rows, LADDER, strict=True):
        counted = count(step.network)
        value = {
            "step": step.label,
            "change": step.change,
            "top1_pct": float(row["top1_pct"]),
            "latency_ms": float(row["latency_ms"]),
            "params_m": counted.params_m,
            "gmacs": counted.gmacs,
        }
        if measured is not None:
            value["measured_ms"] = 1e3 * measured.median(step.label)
        values.append(value)
    titles = ("Accuracy", "Latency, phone", *(("Latency, here",) if measured else ()), "Operations")
    figure = new_figure(13.5 if measured is None else 17.0, 6.4)
    panels = figure.subplots(1, len(titles), sharey=True, width_ratios=(1.15, *(1,) * (len(titles) - 1)))
    accuracy, phone, operations = panels[0], panels[1], panels[-1]
    places = range(len(values))
    top1 = [value["top1_pct"] for value in values]
    # dots instead of bars, because bars must start at 0
    accuracy.hlines(places, 73, top1, color=_GRID, linewidth=2)
    accuracy.plot(top1, places, "o", color=_OURS, markersize=9)
    for place, value in enumerate(top1):
        accuracy.annotate(
            f"{value:.1f}", (value, place), xytext=(9, 0), textcoords="offset points", va="center", color=INK
        )
    accuracy.set_xlim(73, 81.7)
    accuracy.set_yticks(
        list(places), [value["step"].replace(" (", "\n(") for value in values], color=INK, fontsize=11
    )
    accuracy.invert_yaxis()
    accuracy.set_xlabel("top-1, % (paper; axis starts at 73)", color=INK)
    _bars(phone, [value["latency_ms"] for value in values], _BLUE, "ms (paper, iPhone 13)")
    if measured is not None:
        _bars(
            panels[2],
            [value["measured_ms"] for value in values],
            _OURS,
            "ms (this machine, ONNX Runtime, 1 thread)",
        )
    _bars(operations, [value["gmacs"] for value in values], _SKY, "GMACs at 224 (counted here)")
    for title, axes in zip(titles, panels, strict=True):
        axes.set_title(title, loc="left", color=INK, weight="bold")
        tidy(axes, grid="x")
        axes.tick_params(axis="y", length=0)
    figure.suptitle(
        f"From a ConvNeXt to iFormer-M (Figure 2 of {SOURCE})", x=0.01, ha="left", color=INK, weight="bold"
    )
    return figure, values


def _bars(axes: Axes, values: Sequence[float], colour: str, label: str) -> None:
    bars = axes.barh(range(len(values)), values, height=0.62, color=colour)
    axes.bar_label(bars, fmt="%.2f", padding=5, color=INK)
    axes.set_xlim(0, 1.18 * max(values))
    axes.set_xlabel(label, color=INK)


# ------------------------------------------------------------------------------------ figure 3


def _figure_3(trained: TrainedHeads | None) -> tuple[Figure, list[dict[str, Any]]]:
    if trained is None:
        groups = [("random weights", _BLUE, head_similarity())]
        title = "Heads of the multi-head baseline with random weights, on noise"
    else:
        groups = [("random weights", _BLUE, trained.before), ("trained", _OURS, trained.after)]
        title = f"Heads of {trained.name}, on {trained.images}"
    figure = new_figure(9.5, 5.0)
    axes = figure.subplots()
    for number, (label, colour, layers) in enumerate(groups):
        shift = 0.36 * (number - (len(groups) - 1) / 2)
        places = [place + shift for place in range(1, len(layers) + 1)]
        drawn: dict[str, Any] = axes.violinplot(
            [layer.similarities for layer in layers],
            places, showmeans=True, showextrema=False, widths=0.7 / len(groups),
        )  # fmt: skip
        for body in drawn["bodies"]:
            body.set(facecolor=colour, edgecolor=colour, alpha=0.45)
        drawn["bodies"][0].set_label(label)
        drawn["cmeans"].set(color=colour, linewidth=2.5)
        for place, layer in zip(places, layers, strict=True):
            axes.annotate(
                f"{layer.mean:.2f}", (place, max(layer.similarities)), xytext=(0, 6), textcoords="offset points",
                color=colour, weight="bold", ha="center",
            )  # fmt: skip
    layers = groups[0][2]
    axes.set_xticks(range(1, len(layers) + 1), [_layer_label(layer) for layer in layers], color=INK)
    axes.set_xlim(0.4, len(layers) + 0.75)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("cosine similarity of two heads' attention maps", color=INK)
    axes.set_title(title, loc="left", color=INK, weight="bold")
    if len(groups) > 1:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(groups))
    tidy(axes)
    values = [
        {"weights": label, "stage": layer.stage, "block": layer.block, "heads": layer.heads, "mean": layer.mean}
        for label, _, layers in groups
        for layer in layers
    ]
    return figure, values


def _layer_label(layer: LayerSimilarity) -> str:
    return f"stage {layer.stage}\nblock {layer.block}\n{layer.heads} heads"


# ---------------------------------------------------------------------------------------- shared


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def tidy(axes: Axes, *, grid: str = "both") -> None:
    """Style the axes: a faint grid behind the data, and of the frame only the bottom line."""
    axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    for label in axes.get_yticklabels():
        label.set_color(INK)
