"""Time from start to answer, and peak memory, of the commands that people type most; each in a process of its own.

The yardstick of `iformer predict` is the import of torch, torchvision and timm alone, in turns with it. Peak
memory is the largest resident size of the process.

    python benchmarks/start_up.py --out benchmarks/results/start_up.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import append_record
from PIL import Image

from iformer import save
from iformer.bench.timing import interleaved
from iformer.models.factory import create_model

IMPORTS = [sys.executable, "-c", "import torch, torchvision, timm"]


def iformer(*arguments: str) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "iformer", *arguments]


def run(command: list[str]) -> float:
    """Run a program and return its peak resident memory in MiB.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command[2:])} failed: {errors.read().decode()[-500:]}")
    return usage.ru_maxrss / 1024


def photographs(folder: Path, count: int) -> Path:
    """Images of noise, 500 x 375, in two classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        target = folder / "val" / "ab"[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target / f"{number}.jpg")
    return folder


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All figures."""
    data = photographs(folder / "data", 64)
    network = folder / "m.safetensors"
    save(create_model("iformer_m", num_classes=2), network, class_names=("a", "b"))
    one = str(next(data.rglob("*.jpg")))
    predict = iformer("predict", one, "--weights", str(network), "--overwrite", "--out", str(folder / "answers"))
    calls = {
        "import torch, torchvision, timm": IMPORTS,
        "iformer predict PHOTO": predict,
        "iformer --help": iformer("--help"),
        "iformer info": iformer("info"),
    }
    timings = interleaved(
        {name: partial(run, command) for name, command in calls.items()}, rounds=rounds, warmup=1
    )
    peaks = {
        "predict": run(predict),
        "predict, 64 photographs": run([*predict[:4], str(data), *predict[5:]]),
        "eval": run(iformer("eval", str(network), "--data", str(data))),
        "export to ONNX": run(iformer("export", str(network), "--to", "onnx", "--out", str(folder / "artifacts"))),
    }
    return {
        "seconds": timings.to_plain(),
        "predict as a multiple of the imports": 1
        / timings.ratio("import torch, torchvision, timm", "iformer predict PHOTO"),
        "peak MiB of iFormer-M": peaks,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.rounds)
    for name, timing in figures["seconds"].items():
        print(f"{name}: {timing['median_ms'] / 1e3:.2f} s")
    print(f"predict as a multiple of the imports: {figures['predict as a multiple of the imports']:.2f}")
    for name, peak in figures["peak MiB of iFormer-M"].items():
        print(f"peak of {name}: {peak:.0f} MiB")
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
