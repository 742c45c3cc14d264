r"""Latency and peak memory of iFormer-M's attention designs on large images, relative to timm's fused network.

One thread, batch 1, the same random weights for all. In one process, each round calls every form once in random
order; the figure is the median over rounds of the share of timm's time. Peak memory is measured in a separate
process: the largest resident memory during one call minus the resident memory before it. ONNX Runtime runs the
networks exported by `torch.onnx`.

    python benchmarks/high_resolution.py --out benchmarks/results/high_resolution.json \
        --plot docs/images/high_resolution.png
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from machine import append_record
from torch import nn

from iformer.bench.timing import interleaved
from iformer.config.network import NetworkConfig
from iformer.config.variants import network_config
from iformer.config.windows import with_design
from iformer.models.complexity import count_macs
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.models.weights.dialects import from_timm

ORACLE = "timm fused"
RUNTIMES = ("pytorch", "onnxruntime")
MODEL = "iformer_m"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One network to measure; timm's if `design` is None."""

    design: str | None = None
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> NetworkConfig:
        """Return the config of the network."""
        assert self.design is not None
        return with_design(network_config(MODEL), self.design, preset=self.preset, **self.options)

    def network(self) -> nn.Module:
        """Return the network ready for inference, with weights from a fixed seed."""
        torch.manual_seed(0)
        oracle: Any = timm.create_model(MODEL).eval()
        if self.design is None:
            oracle.fuse()
            return cast(nn.Module, oracle)
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
    "chunked, no global block": Form(
        design="chunk_hybrid", options={"windowed_stages": (3, 4), "global_blocks": 0}
    ),
}
PADDED_SIZE = 640
"""Stage 3 has 40 x 40 tokens at this size, so a third of the tokens in its windows are padding."""
PADDING = {
    name: Form(design="hybrid", preset="released", options={"padded_tokens": name})
    for name in ("attended", "masked")
}


def example(size: int) -> torch.Tensor:
    """Return a normalised image of noise from a fixed seed."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def write_onnx(form: Form, size: int, path: Path) -> None:
    """Export a form to ONNX for one image of `size`."""
    network = form.network()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    torch.onnx.export(network, (example(size),), path, dynamo=True, input_names=["image"], verbose=False)


def onnx_call(path: Path, size: int) -> Callable[[], Any]:
    """Return a call of ONNX Runtime with one image on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fed = {"image": example(size).numpy()}
    return lambda: session.run(None, fed)


def call(runtime: str, name: str, size: int, folder: Path) -> Callable[[], Any]:
    """Return a call of a form with one image in a runtime."""
    if runtime == "pytorch":
        return partial(FORMS[name].network(), example(size))
    path = folder / f"{list(FORMS).index(name)}_{size}.onnx"
    if not path.exists():
        write_onnx(FORMS[name], size, path)
    return onnx_call(path, size)


def peak_memory(runtime: str, name: str, size: int, folder: Path) -> float:
    """Return the memory of one call in MiB, without the loaded network, measured in a separate process."""
    command = [sys.executable, __file__, "--peak", runtime, name, str(size), str(folder)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(finished.stdout.splitlines()[-1])


def print_peak(runtime: str, name: str, size: int, folder: Path) -> None:
    """Measure and print the memory for `peak_memory`. Linux only: it resets and reads VmHWM."""
    run = call(runtime, name, size, folder)
    ctypes.CDLL(None).malloc_trim(0)  # the call must not reuse memory that building the network has freed
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current resident memory
    run()
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


def measure(runtime: str, size: int, rounds: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Return latency, share of timm's latency, peak memory and GMACs of every form at one size."""
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


def measure_padding(rounds: int) -> dict[str, dict[str, Any]]:
    """Return the latency of both treatments of padded tokens in PyTorch, as a share of the released one."""
    image = example(PADDED_SIZE)
    calls = {name: partial(form.network(), image) for name, form in PADDING.items()}
    timings = interleaved(calls, rounds=rounds, warmup=1)
    return {
        name: timing | {"share of time": 1 / timings.ratio("attended", name)}
        for name, timing in timings.to_plain().items()
    }


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Plot milliseconds per megapixel; a level line means that the cost grows linearly with the pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "plain": ("plain SHMA", "#D55E00", "o", "-"),
        "hybrid, released": ("Hybrid, released", "#0072B2", "s", "-"),
        "chunked, released": ("Chunk Hybrid, released", "#56B4E9", "^", "--"),
        "chunked, paper text": ("Chunk Hybrid, paper's text", "#009E73", "D", "-"),
        "chunked, no global block": ("Chunk Hybrid, no global block", "#4d4d4d", "v", "-"),
    }
    sizes = sorted(int(size) for size in results)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, (label, colour, marker, line) in shown.items():
        rates = [1e6 * results[str(size)][name]["median_ms"] / size**2 for size in sizes]
        axes.plot(sizes, rates, color=colour, marker=marker, linestyle=line, label=label)
    axes.set(xscale="log", xlabel="side of the image, pixels", ylabel="ms per megapixel, one thread")
    axes.set_title("iFormer-M, folded, in PyTorch: level is linear in pixels", loc="left", fontsize=11)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e3e5e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


@torch.no_grad()
def main() -> None:
    """Measure, print tables and, with --out and --plot, write the record and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument(
        "--rounds", nargs="+", type=int, default=[20, 10, 3], help="number of rounds for each size"
    )
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
                        f"{row['share of time']:.3f} of timm's time  {row['peak_mib']:7.0f} MiB  "
                        f"{row['gmacs']:7.2f} GMACs",
                        flush=True,
                    )
                if options.out:  # keep the figures if a later size fails
                    append_record(options.out, figures)
    padding = measure_padding(options.rounds[0])
    print(
        f"padding at {PADDED_SIZE}: masked takes {padding['masked']['share of time']:.3f} of the time of attended"
    )
    if options.out:
        append_record(options.out, {**figures, f"padding at {PADDED_SIZE}": padding})
    if options.plot and "pytorch" in figures:
        draw(figures["pytorch"], options.plot)


if __name__ == "__main__":
    main()
