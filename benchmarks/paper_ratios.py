"""The latency ratios that the paper claims, measured here: folded networks in ONNX Runtime, one thread, batch 1.

Each pair is exported to ONNX, loaded with one thread, and called in rounds, in an order drawn anew, in one
process. The figure is the median over rounds of the ratio; beside it is the ratio of the paper's latencies,
measured on an iPhone 13.

    python benchmarks/paper_ratios.py --out benchmarks/results/paper_ratios.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iformer.bench.record import write_record
from iformer.bench.timing import interleaved
from iformer.config.network import NetworkConfig
from iformer.deploy.export import export_artifact
from iformer.deploy.runtimes import find_runtime
from iformer.models.factory import build
from iformer.paper.ablations import ABLATIONS


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Two networks, and how many times the first one's latency is the second one's in the paper."""

    slow: str
    fast: str
    networks: tuple[NetworkConfig, NetworkConfig]
    paper_ms: tuple[float, float]
    source: str
    size: int = 224


def claims() -> list[Claim]:
    """What the paper says of its phone."""
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
    ]


def call(network: NetworkConfig, size: int, folder: Path) -> Callable[[], Any]:
    """A network with random weights as an ONNX artifact, ready to be timed."""
    torch.manual_seed(0)
    model: Any = build(network).eval()
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    export_artifact(model, path, "onnx", size=(size, size), batch=1)
    runner: Any = find_runtime("onnx").module().load(path, threads=1)
    return partial(runner.run, runner.prepare(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)))


def main() -> None:
    """Measure, print, and with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures = {}
    for claim in claims():
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                name: call(network, claim.size, Path(folder))
                for name, network in zip((claim.slow, claim.fast), claim.networks, strict=True)
            }
            timings = interleaved(calls, rounds=options.rounds, warmup=5)
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
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
