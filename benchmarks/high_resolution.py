r"""iFormer-M's attention designs on large images: time and peak memory against timm's network after its `fuse()`.

One thread, batch 1, random weights that are the same in all. Each round calls every form once, in an order drawn
anew, in one process; the figure is the median over rounds of the share of timm's time. Peak memory is that of a
process of its own: the highest resident size of one call less what was resident before it. ONNX Runtime runs the
graphs that `torch.onnx` makes of the same networks.

    python benchmarks/high_resolution.py --out benchmarks/results/high_resolution.json \
        --plot docs/images/high_resolution.png
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from iformer.bench.record import write_record
from iformer.bench.timing import interleaved
from iformer.config.network import NetworkConfig
from iformer.config.variants import network_config
from iformer.config.windows import with_design
from iformer.models.complexity import count_macs
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.models.key_names import from_timm

ORACLE = "timm fused"
RUNTIMES = ("pytorch", "onnxruntime")
MODEL = "iformer_m"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One network to measure; without a design it is timm's."""

    design: str | None = None
    preset: str | None = None

    def config(self) -> NetworkConfig:
        """The network's config."""
        assert self.design is not None
        return with_design(network_config(MODEL), self.design, preset=self.preset)

    def network(self) -> nn.Module:
        """The network ready to run, its weights drawn from one seed."""
        torch.manual_seed(0)
        oracle = timm.create_model(MODEL).eval()
        if self.design is None:
            oracle.fuse()
            return oracle
        model = build(self.config())
        model.load_state_dict(from_timm(oracle.state_dict(), network_config(MODEL)))
        return fold(model.eval())


FORMS = {
    ORACLE: Form(),
    "plain": Form(design="shma"),
    "hybrid, released": Form(design="hybrid", preset="released"),
    "chunked, released": Form(design="chunk_hybrid", preset="released"),
    "hybrid, paper text": Form(design="hybrid", preset="paper"),
    "chunked, paper text": Form(design="chunk_hybrid", preset="paper"),
}


def example(size: int) -> torch.Tensor:
    """A normalised image of noise, always the same."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def write_onnx(form: Form, size: int, path: Path) -> None:
    """The form's graph for one image of a size."""
    network = form.network()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    torch.onnx.export(network, (example(size),), path, dynamo=True, input_names=["image"], verbose=False)


def onnx_call(path: Path, size: int) -> Callable[[], Any]:
    """One image through ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fed = {"image": example(size).numpy()}
    return lambda: session.run(None, fed)


def call(runtime: str, name: str, size: int, folder: Path) -> Callable[[], Any]:
    """One image through a form in a runtime."""
    if runtime == "pytorch":
        return partial(FORMS[name].network(), example(size))
    path = folder / f"{list(FORMS).index(name)}_{size}.onnx"
    if not path.exists():
        write_onnx(FORMS[name], size, path)
    return onnx_call(path, size)


def peak_memory(runtime: str, name: str, size: int, folder: Path) -> float:
    """MiB that one call needs beyond the loaded network, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", runtime, name, str(size), str(folder)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(finished.stdout.splitlines()[-1])


def print_peak(runtime: str, name: str, size: int, folder: Path) -> None:
    """What `peak_memory` runs. Linux only: it reads and resets the kernel's own high-water mark."""
    run = call(runtime, name, size, folder)
    ctypes.CDLL(None).malloc_trim(0)  # what building the network left in the allocator is not to be used again
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew at what is resident now
    run()
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


def measure(runtime: str, size: int, rounds: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Time, also as a share of timm's, peak memory and GMACs of every form at one size."""
    timings = interleaved({name: call(runtime, name, size, folder) for name in FORMS}, rounds=rounds, warmup=1)
    figures: dict[str, dict[str, Any]] = {}
    for name, timing in timings.to_plain().items():
        network = FORMS[name].network()
        figures[name] = timing | {
            "share of time": 1 / timings.ratio(ORACLE, name),
            "peak_mib": peak_memory(runtime, name, size, folder),
            "gmacs": count_macs(network, (size, size)) / 1e9,
        }
    return figures


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Milliseconds of the designs against pixels, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "plain": "plain SHMA",
        "hybrid, released": "Hybrid SHMA, released",
        "chunked, released": "Chunk Hybrid SHMA, released",
        "chunked, paper text": "Chunk Hybrid SHMA, paper's text",
    }
    sizes = sorted(int(size) for size in results)
    pixels = [size**2 / 1e6 for size in sizes]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, label in shown.items():
        axes.plot(pixels, [results[str(size)][name]["median_ms"] for size in sizes], marker="o", label=label)
    start = results[str(sizes[0])]["chunked, released"]["median_ms"]
    linear = [start * count / pixels[0] for count in pixels]
    axes.plot(pixels, linear, color="gray", linestyle=":", label="linear in pixels")
    axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel="ms on one thread", title="iFormer-M in PyTorch")
    axes.set_xticks(pixels, [f"{size}²" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


@torch.no_grad()
def main() -> None:
    """Measure, print tables, and with --out write the record and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--rounds", nargs="+", type=int, default=[20, 10, 3], help="of each size")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peak", nargs=4, metavar=("RUNTIME", "FORM", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        runtime, name, size, folder = options.peak
        print_peak(runtime, name, int(size), Path(folder))
        return
    if len(options.rounds) != len(options.sizes):
        parser.error("--rounds takes as many numbers as --sizes")
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in options.runtimes:
            figures[runtime] = {}
            for size, rounds in zip(options.sizes, options.rounds, strict=True):
                measured = measure(runtime, size, rounds, Path(folder))
                figures[runtime][str(size)] = measured
                for name, row in measured.items():
                    print(
                        f"{runtime:11} {size:5}  {name:20}  {row['median_ms']:9.1f} ms  "
                        f"{row['share of time']:.3f} of timm's  {row['peak_mib']:7.0f} MiB  "
                        f"{row['gmacs']:7.2f} GMACs",
                        flush=True,
                    )
                if options.out:  # what is measured is kept, should a later size fail
                    write_record(options.out, figures)
    if options.plot and "pytorch" in figures:
        draw(json.loads(json.dumps(figures["pytorch"])), options.plot)


if __name__ == "__main__":
    main()
