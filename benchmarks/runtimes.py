"""Latency of exported iFormers and of timm's networks after `fuse()` in each runtime: one thread, batch 1.

Both are exported in fp32 with the same input; timm's networks go through the runtime's converter without any
code of this package in the graph. Each artifact has its own process; the processes take turns in random order.
With `--precision int8`, the iFormers are also timed in INT8, calibrated on noise, which does not change the
latency. The share is that of the throughput of the same runtime on one large matrix product in the same run.

    python benchmarks/runtimes.py --models iformer_m --out benchmarks/results/runtimes.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import append_record
from PIL import Image

from iformer.bench.latency import Latency, measure
from iformer.bench.subjects import TIMM_PREFIX, BenchSubject, prepare_matrix_product, prepare_subject
from iformer.deploy.export import export_artifact
from iformer.deploy.exportable import Forward
from iformer.deploy.quantize import Quantization
from iformer.deploy.runtimes.registry import RUNTIMES, Runtime
from iformer.models.factory import create_model
from iformer.tasks.export import exportable

HERE = ("onnx", "openvino", "executorch", "litert", "ncnn")


def subjects(name: str, runtime: Runtime, folder: Path, *, int8: bool) -> list[BenchSubject]:
    """Export timm's network, ours, ours in INT8 if `int8`, and the matrix product."""
    found = [
        prepare_subject(f"{TIMM_PREFIX}{name}", runtime, folder, size=(224, 224), label="timm, fused"),
        prepare_subject(name, runtime, folder, size=(224, 224), label="ours"),
    ]
    if int8 and "int8" in runtime.precisions:
        found.append(prepare_subject(str(_int8(name, runtime, folder)), runtime, folder, label="ours, int8"))
    return [*found, prepare_matrix_product(runtime, folder)]


def _int8(name: str, runtime: Runtime, folder: Path) -> Path:
    generator = np.random.default_rng(0)
    images = []
    for index in range(4):
        images.append(folder / f"noise{index}.png")
        Image.fromarray(generator.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(images[-1])
    model = create_model(name).eval()
    path = folder / f"{name}_int8{runtime.suffix}"
    quantization = Quantization(images=images, measure=_no_metric)
    export_artifact(
        exportable(model), path, runtime.name, batch=1, precision="int8", raw=True, quantization=quantization
    )
    return path


def _no_metric(_forward: Forward) -> dict[str, float]:
    return {"top1": 0.0}  # the weights are random; only the latency is measured


def main() -> None:
    """Measure, print a table and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["iformer_m"])
    parser.add_argument("--runtimes", nargs="+", default=list(HERE), choices=HERE)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="int8: in addition to fp32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    figures: dict[str, Any] = {}
    for name in options.models:
        for runtime in options.runtimes:
            with tempfile.TemporaryDirectory() as folder:
                found = subjects(name, RUNTIMES[runtime], Path(folder), int8=options.precision == "int8")
                rows = measure(found, rounds=options.rounds, threads=options.threads)
            figures.setdefault(name, {})[runtime] = [row.to_plain() for row in rows]
            for row in rows:
                _print(name, row)
    if options.out:
        append_record(options.out, figures)


def _print(name: str, row: Latency) -> None:
    share = (
        ""
        if row.matrix_product_share is None
        else f"{100 * row.matrix_product_share:5.0f} % of the matrix product"
    )
    print(f"{name}  {row.runtime:10}  {row.label:14}  {row.median_ms:7.2f} ms  {row.times_as_fast:.3f}x  {share}")


if __name__ == "__main__":
    main()
