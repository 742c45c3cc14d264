"""Tables of `iformer bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from iformer.cli.output import print_table

if TYPE_CHECKING:
    from iformer.bench.device_columns import Column
    from iformer.bench.latency import Latency
    from iformer.web.report import WebRow

Row = TypeVar("Row")

_LEAST_IMPORTANT = ("load ms", "MB", "first ms", "share", "p90", "p10", "GFLOP/s")
"""Columns that a narrow terminal does not show, the first one first."""


def print_latencies(title: str, rows: Sequence[Latency]) -> None:
    """Print the latencies of one runtime."""
    columns: dict[str, Callable[[Latency], str]] = {
        "network": lambda row: row.label,
        "device": lambda row: row.device,
        "precision": lambda row: row.precision,
        "ms": lambda row: _text(row.median_ms, 2),
        "p10": lambda row: _text(row.p10_ms, 2),
        "p90": lambda row: _text(row.p90_ms, 2),
        "speed": lambda row: f"{row.times_as_fast:.2f}x",
        "GFLOP/s": lambda row: _text(row.gflops, 0),
        "share": lambda row: _text(row.matrix_product_share, 2),
        "load ms": lambda row: _text(row.load_ms, 0),
        "MB": lambda row: _text(row.file_mb, 1),
        "mJ": lambda row: _text(row.energy_mj, 1),
        "not on the Neural Engine": lambda row: ", ".join(
            f"{count} {kind}" for kind, count in row.elsewhere.items()
        ),
    }
    if all(row.units for row in rows):
        del columns["GFLOP/s"], columns["share"], columns["MB"]
    else:
        del columns["device"], columns["not on the Neural Engine"]
    if all(row.energy_mj is None for row in rows):
        del columns["mJ"]
    _print(title, columns, rows, left=3 if "device" in columns else 2)


def print_browser_latencies(title: str, rows: Sequence[WebRow]) -> None:
    """Print the latencies of a browser's backends."""
    columns: dict[str, Callable[[WebRow], str]] = {
        "network": lambda row: row.label,
        "backend": lambda row: row.where,
        "precision": lambda row: row.precision,
        "ms": lambda row: _text(row.median_ms, 2),
        "p10": lambda row: _text(row.p10_ms, 2),
        "p90": lambda row: _text(row.p90_ms, 2),
        "speed": lambda row: "" if row.times_as_fast is None else f"{row.times_as_fast:.2f}x",
        "first ms": lambda row: _text(row.first_ms, 0),
        "error": lambda row: "" if row.max_relative_error is None else f"{row.max_relative_error:.0e}",
    }
    _print(title, columns, rows, left=3)


def print_devices(columns: Sequence[Column]) -> None:
    """Print the median latencies of several devices side by side."""
    from iformer.bench.device_columns import networks

    cells = [
        [network.label, network.precision, f"{network.size[0]} x {network.size[1]}"]
        + [_text(column.median_ms.get(network), 2) for column in columns]
        for network in networks(columns)
    ]
    titles = ["network", "precision", "input", *(column.title for column in columns)]
    print_table("Median latency, ms", titles, cells, left=3)


def _print(title: str, columns: dict[str, Callable[[Row], str]], rows: Sequence[Row], *, left: int) -> None:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    optional = [name for name in _LEAST_IMPORTANT if name in columns]
    print_table(title, list(columns), cells, left=left, optional=optional)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
