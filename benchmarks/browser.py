"""Latency in Chromium's WebAssembly against the same file in Python's ONNX Runtime: fp32, one thread, batch 1.

Each network is exported once. Blocks of rounds alternate: Python, then the browser, which this script starts
without a window. The networks of a block take turns, and a block's ratio is that of its medians. A latency in the
browser counts only where the outputs are those of Python (1e-4 of the largest value). The browser's packages are
those of docs/tutorials/phone.md.

    python benchmarks/browser.py --assets . --out benchmarks/results/browser.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import append_record

from iformer.bench.latency import measure
from iformer.bench.subjects import BenchSubject, prepare_subject
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.web.bench import WebResult, measure_browser

MODELS = (
    "iformer_t",
    "iformer_m",
    "timm/mobilenetv3_large_100",
    "timm/mobilenetv4_conv_medium",
    "timm/repvit_m1_1",
)
BACKEND = "WebAssembly"


def browser_medians(result: WebResult) -> dict[str, float]:
    """Return the median in milliseconds of each network in WebAssembly.

    Raises:
        RuntimeError: a network has none; the message says why.
    """
    found = {}
    for row in result.rows:
        if row.backend == BACKEND:
            if row.median_ms is None:
                raise RuntimeError(f"{row.label}: {row.reason}")
            found[row.label] = row.median_ms
    return found


def figures(
    subjects: list[BenchSubject], *, blocks: int, rounds: int, assets: str | None, browser: str
) -> dict[str, Any]:
    """Measure alternating blocks; return each network's median of both, and the ratio of each block."""
    python: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    web: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    for block in range(blocks):
        for row in measure(subjects, rounds=rounds):
            python[row.label].append(row.median_ms)
        result = measure_browser(subjects, None, rounds=rounds, gpu=False, browser=browser, assets=assets)
        for label, median in browser_medians(result).items():
            web[label].append(median)
        print(f"block {block + 1} of {blocks}", flush=True)
    rows = {}
    for label in python:
        ratios = [there / here for there, here in zip(web[label], python[label], strict=True)]
        rows[label] = {
            "python ms": statistics.median(python[label]),
            "browser ms": statistics.median(web[label]),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return {"browser": result.device.browser, "blocks": blocks, "rounds": rounds, "networks": rows}


def main() -> None:
    """Measure, print a line per network and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10, help="samples of each network in a block")
    parser.add_argument("--browser", default="auto", help="auto, or the program of a Chromium-based browser")
    parser.add_argument("--assets", help="the folder of the npm installation, or cdn")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [prepare_subject(name, RUNTIMES["onnx"], Path(folder), label=name) for name in options.models]
        found = figures(
            subjects,
            blocks=options.blocks,
            rounds=options.rounds,
            assets=options.assets,
            browser=options.browser,
        )
    for name, row in found["networks"].items():
        print(f"{name:30} {row['python ms']:7.2f} ms  {row['browser ms']:7.2f} ms  {row['ratio']:.2f}x")
    if options.out:
        append_record(options.out, found)


if __name__ == "__main__":
    main()
