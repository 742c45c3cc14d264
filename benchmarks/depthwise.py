"""Latency of depthwise convolutions by kernel size and runtime, and of 7 x 7 split for XNNPACK.

One thread, batch 1. Each form has its own process; the processes take turns, as in runtimes.py. The speedup is
relative to the plain 7 x 7 convolution.

    python benchmarks/depthwise.py --out benchmarks/results/depthwise.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import append_record
from torch import nn

from iformer.bench.latency import measure
from iformer.bench.subjects import prepare_layer
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.deploy.runtimes.xnnpack import SplitDepthwise

HERE = ("onnx", "openvino", "executorch", "litert", "ncnn")
MAPS = ((48, 56), (96, 28), (192, 14))
"""Channels and side of the feature maps of iFormer-M's stages 1 to 3."""


def forms(channels: int) -> dict[str, nn.Module]:
    """Return the layers by their label; the first is the baseline."""
    layers = {
        f"{size} x {size}": nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        for size in (7, 5, 3)
    }
    return layers | {"7 x 7 split": SplitDepthwise(layers["7 x 7"])}


def main() -> None:
    """Measure, print a table and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", default=list(HERE), choices=HERE)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    figures: dict[str, Any] = {}
    for name in options.runtimes:
        for channels, side in MAPS:
            with tempfile.TemporaryDirectory() as folder:
                subjects = [
                    prepare_layer(layer, label, RUNTIMES[name], Path(folder), size=(side, side), channels=channels)
                    for label, layer in forms(channels).items()
                ]
                rows = measure(subjects, rounds=options.rounds, threads=options.threads)
            where = f"{channels} x {side} x {side}"
            figures.setdefault(name, {})[where] = [row.to_plain() for row in rows]
            for row in rows:
                times = f"{1e3 * row.median_ms:8.1f} us  {row.times_as_fast:6.2f}x"
                print(f"{name:10}  {where:14}  {row.label:11}  {times}")
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
