"""The networks that the paper compares with iFormer, and the networks of timm that they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from iformer_paper.printed import read_rows


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of Tables 3, 4, 5, 12, 13 and 18 that is not an iFormer.

    Values are those that the paper prints, of the first of its rows; None where it prints none.
    """

    label: str
    """Name of the network in the paper."""
    timm_name: str | None
    """Name of the network in timm; None if timm does not have it."""
    reason: str
    """Why `iformer bench --peers` does not measure the network; empty if it does."""
    tables: tuple[int, ...]
    """Numbers of the tables with the row."""
    side: int
    """Height and width of the input in pixels."""
    params_m: float | None
    gmacs: float | None
    timm_params_m: float | None
    """Counted parameters of timm's network, in millions."""
    timm_gmacs: float | None
    """Counted multiply-accumulates of timm's network at `side`, in billions; None at 512 pixels."""
    merged: bool
    """Whether branches, norms and spare heads were merged before counting."""
    top1: tuple[float, ...]
    """ImageNet-1k top-1 accuracies in percent without distillation."""
    distilled_top1: tuple[float, ...]
    """Accuracies with distillation; two if the paper prints that of 300 and that of 450 epochs."""
    latency_ms: float | None
    """Latency on an iPhone 13 in milliseconds; None if the paper could not measure it."""
    note: str
    """What is to know about the count, or about a contradiction in the paper."""


@cache
def peers() -> tuple[Peer, ...]:
    """Return all peers, in the order of the paper's tables."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_rows("peers"):
        found.setdefault(row["paper_name"], []).append(row)
    return tuple(_peer(label, rows) for label, rows in found.items())


def _peer(label: str, rows: list[dict[str, str]]) -> Peer:
    first = rows[0]
    accuracies: dict[bool, list[float]] = {False: [], True: []}
    for row in rows:
        if row["top1_pct"]:
            accuracies[row["distilled"] == "1"].append(float(row["top1_pct"]))
    return Peer(
        label=label,
        timm_name=first["timm_name"] or None,
        reason=first["reason"],
        tables=tuple(int(number) for number in first["tables"].split(";")),
        side=int(first["resolution"]),
        params_m=_number(first["params_m"]),
        gmacs=_number(first["gmacs"]),
        timm_params_m=_number(first["timm_params_m"]),
        timm_gmacs=_number(first["timm_gmacs"]),
        merged=first["timm_form"] == "merged",
        top1=tuple(accuracies[False]),
        distilled_top1=tuple(accuracies[True]),
        latency_ms=None if first["latency_ms_iphone13"] == "Failed" else float(first["latency_ms_iphone13"]),
        note=first["note"],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
