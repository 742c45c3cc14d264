"""The latency ratios of the paper's claims, with folded networks in ONNX Runtime, one thread, batch 1.

In one process, each round calls both exported networks of a pair once in random order. The figure is the median
over rounds of the ratio of their latencies. The paper's ratio is that of its latencies on an iPhone 13.

    python benchmarks/paper_ratios.py --out benchmarks/results/paper_ratios.json
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from machine import append_record

from iformer.config.network import NetworkConfig
from iformer_paper.ablations import ABLATIONS, DESIGNS
from iformer_paper.latency import measure_latencies


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Two networks and their latencies in the paper, in milliseconds."""

    slow: str
    fast: str
    networks: tuple[NetworkConfig, NetworkConfig]
    paper_ms: tuple[float, float]
    source: str
    size: int = 224


def claims() -> list[Claim]:
    """Return the compared pairs."""
    heads, kernels, shvit = ABLATIONS[1], ABLATIONS[2], ABLATIONS[14]
    return [
        Claim(
            slow="multi-head attention",
            fast="single-head attention",
            networks=(heads["MHA Baseline"], heads["SHA Baseline"]),
            paper_ms=(1.40, 1.12),
            source="Table 1",
        ),
        Claim(
            slow="7x7 kernels",
            fast="3x3 kernels",
            networks=(kernels["7x7"], kernels["3x3"]),
            paper_ms=(1.01, 1.00),
            source="Table 2",
        ),
        Claim(
            slow="split q, k, v",
            fast="no split",
            networks=(shvit["split"], shvit["SHA Baseline without Modulation"]),
            paper_ms=(1.18, 1.12),
            source="Table 14",
        ),
        Claim(
            slow="concat",
            fast="no concat",
            networks=(shvit["concat"], shvit["attention on 1/4 channels"]),
            paper_ms=(1.11, 1.02),
            source="Table 14",
        ),
        Claim(
            slow="split and concat",
            fast="neither",
            networks=(shvit["concat"], shvit["SHA Baseline without Modulation"]),
            paper_ms=(1.11, 1.12),
            source="Table 14",
        ),
        Claim(
            slow="Hybrid SHMA",
            fast="Chunk Hybrid SHMA",
            networks=(DESIGNS["Hybrid SHMA"], DESIGNS["Chunk Hybrid SHMA"]),
            paper_ms=(11.46, 4.0),
            source="Table 17",
            size=512,
        ),
    ]


def main() -> None:
    """Measure, print the ratios and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures = {}
    for claim in claims():
        pair = dict(zip((claim.slow, claim.fast), claim.networks, strict=True))
        timings = measure_latencies(pair, size=claim.size, rounds=options.rounds)
        ratio, paper = timings.ratio(claim.slow, claim.fast), claim.paper_ms[0] / claim.paper_ms[1]
        figures[f"{claim.slow} / {claim.fast}"] = {
            "source": claim.source,
            "size": claim.size,
            "ratio": ratio,
            "paper_ratio": paper,
            "paper_ms": claim.paper_ms,
            "timings": timings.to_plain(),
        }
        print(f"{claim.slow} / {claim.fast}: {ratio:.3f} here, {paper:.3f} on the paper's phone ({claim.source})")
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
