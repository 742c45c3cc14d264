"""The table of the paper's peers: what the paper prints, and the latencies measured here."""

from __future__ import annotations

import json
from typing import Any

from machine_records import RESULTS

from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.tables import Markdown, markdown_code, markdown_table
from iformer_paper.peers import Peer, peers

_NOT_YET = "not yet"


def peer_table() -> str:
    """One row for each of the paper's peers: its figures, or the reason why there are none."""
    record: dict[str, Any] = json.loads((RESULTS / "peers.json").read_text())
    latencies = {
        runtime: {row["label"]: f"{row['median_ms']:.1f}" for row in rows}
        for runtime, rows in record["figures"].items()
    }
    left_out: dict[str, str] = record.get("left_out", {})

    def here(peer: Peer, runtime: str) -> str:
        if peer.reason:
            return ""
        if f"{peer.label} in {RUNTIMES[runtime].title}" in left_out:
            return "no export"
        return latencies[runtime].get(peer.label, _NOT_YET)

    rows = [
        [
            peer.label,
            Markdown(", ".join(filter(None, [peer.timm_name and markdown_code(peer.timm_name), peer.reason]))),
            str(peer.side),
            ", ".join(map(str, peer.top1)),
            ", ".join(map(str, peer.distilled_top1)),
            _beside(peer.params_m, peer.timm_params_m),
            _beside(peer.gmacs, peer.timm_gmacs),
            "failed" if peer.latency_ms is None else f"{peer.latency_ms:.2f}",
            *(here(peer, runtime) for runtime in latencies),
        ]
        for peer in peers()
    ]
    columns = [
        *("network", "in timm", "pixels", "top-1, %", "distilled, %", "parameters, M", "GMACs", "iPhone 13, ms"),
        *(f"{RUNTIMES[runtime].title}, ms" for runtime in latencies),
    ]
    return markdown_table(columns, rows, left=2)


def _beside(printed: float | None, counted: float | None) -> str:
    """The printed value; if it is 5 % from timm's or missing, timm's in parentheses."""
    shown = [] if printed is None else [f"{printed:g}"]
    if counted is not None and (printed is None or abs(counted / printed - 1) > 0.05):
        shown.append(f"({counted:.2f})")
    return " ".join(shown)
