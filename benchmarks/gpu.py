"""iFormer on one GPU, in one record: inference, training, large images, profiles, and a distributed smoke test.

Each section has a share of `--minutes`. Within a section the most important measurements come first; those that no
longer fit are listed in the record under "skipped", and a measurement that fails is recorded with its error. The
baselines are timm's networks with the same weights, as timm's own scripts run them (`--amp`, eager) and in the
fastest form that timm offers (fused, channels-last, compiled, CUDA graph).

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --tiny --out /tmp/gpu.json    # everything in miniature, on a CPU too
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from iformer.bench.record import write_record
from iformer.bench.timing import interleaved
from iformer.config.variants import network_config
from iformer.config.windows import with_design
from iformer.data.sources import load_data
from iformer.data.sources.shards.packing import pack
from iformer.layers.attention import fused_attention, stored_attention
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.models.weights.dialects import from_timm
from iformer.tasks.registry import load_recipe
from iformer.training.network.fsdp import ShardedNetwork

sys.path.insert(0, str(Path(__file__).parent))
from training_loop import CLASSES, Batch, Ours, Timms, loop_seconds, make_images, profile

MODELS = ("iformer_m", "iformer_t", "iformer_l", "iformer_s", "iformer_l2", "iformer_h")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""fp32 multiplies in TF32, as PyTorch's `high` precision does."""
TOLERANCE = {"bf16": 3e-2, "fp16": 1e-2, "fp32": 1e-2}
"""Largest ||logits - fp32 logits|| / ||fp32 logits||; random weights amplify rounding more than trained ones."""
SECONDS = {
    "inference": 100,
    "training step": 110,
    "training loop": 70,
    "compiled inference": 60,
    "attention": 10,
    "large images": 30,
    "distributed": 20,
    "profile": 20,
}
"""The share of each section in `--minutes`."""


@dataclass(kw_only=True)
class Bench:
    """Device, sizes and time of a run."""

    device: torch.device
    models: Sequence[str] = MODELS
    batches: Sequence[int] = (32, 256, 1)
    size: int = 224
    train_batch: int = 256
    large_sizes: Sequence[int] = (512, 1024, 2048)
    rounds: int = 15
    workers: int = 1
    images: int = 512
    repeats: int = 31
    """Each image is there this often, so that the loop outlasts what its workers prepare in advance."""
    loop_steps: int = 60
    minutes: float = 7.0
    sections: Sequence[str] = tuple(SECONDS)
    ends: float = field(default=0.0, init=False)
    skipped: list[str] = field(default_factory=list, init=False)

    def begins(self, section: str) -> bool:
        """Whether a section is wanted; its time begins."""
        total = sum(SECONDS[name] for name in self.sections)
        self.ends = time.monotonic() + 60 * self.minutes * SECONDS[section] / total
        return section in self.sections

    def fits(self, what: str) -> bool:
        """Return whether there is time for a measurement. If not, list it as skipped."""
        if time.monotonic() < self.ends:
            return True
        self.skipped.append(what)
        return False

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Return cached memory to the device and forget compiled graphs."""
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def allocated_gib(self) -> float:
        """Memory of tensors; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def peak_gib(self) -> float | None:
        """Peak memory of tensors since the last `free`; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 2**30


@contextmanager
def recorded_errors(result: dict[str, Any], what: str) -> Iterator[None]:
    """Record an exception under `what` and go on: one form that fails must not lose the others."""
    try:
        yield
    except Exception as error:  # whatever a compiler or a driver raises is a result here
        result[what] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(f"{what}: {result[what]['error']}", flush=True)


# ------------------------------------------------------------------------------------------ what the chip can do


def ceilings(bench: Bench) -> dict[str, float]:
    """Measured rates of a large matrix product (TFLOP/s) and of a copy (TB/s, bytes read and written)."""
    on_gpu = bench.device.type == "cuda"
    side, count = (8192, 2**28) if on_gpu else (512, 2**22)
    rates = {}
    for name, dtype in DTYPES.items():
        a = torch.randn(side, side, device=bench.device, dtype=dtype)
        timing = interleaved({"product": partial(torch.mm, a, a)}, rounds=5, synchronize=bench.wait)
        rates[f"{name} TFLOP/s"] = 2 * side**3 / timing.median("product") / 1e12
    source = torch.randn(count, device=bench.device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": partial(target.copy_, source)}, rounds=5, synchronize=bench.wait)
    rates["copy TB/s"] = 2 * 4 * count / timing.median("copy") / 1e12
    return rates


# --------------------------------------------------------------------------------------------------- inference


@lru_cache
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """timm's network and ours with the same random weights, both in eval mode and not fused."""
    torch.manual_seed(0)
    oracle = timm.create_model(name).eval()
    config = network_config(name)
    ours = build(config)
    ours.load_state_dict(from_timm(oracle.state_dict(), config))
    return oracle, ours.eval()


def fused(oracle: nn.Module) -> nn.Module:
    """A copy of timm's network after its own `fuse`."""
    network: Any = copy.deepcopy(oracle)
    network.fuse()
    return cast(nn.Module, network)


def graphed(network: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Capture a call in a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(x)

    def replay() -> torch.Tensor:
        graph.replay()
        return cast(torch.Tensor, output)

    return replay


def amp(network: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Run a call under autocast, as timm's scripts do with `--amp`."""
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return cast(torch.Tensor, network(x))


def eager_forms(bench: Bench, name: str, x: torch.Tensor, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """The forms that need no compiler, by name."""
    oracle, ours = pair(name)
    flat, last = torch.contiguous_format, torch.channels_last
    cast_x = x.to(dtype)
    forms: dict[str, Callable[[], Any]] = {
        "timm amp": partial(amp, copy.deepcopy(oracle).to(bench.device), x, dtype),
        "timm amp, channels-last": partial(
            amp,
            copy.deepcopy(oracle).to(bench.device, memory_format=last),  # type: ignore[call-overload]
            x.contiguous(memory_format=last),
            dtype,
        ),
        "timm fused": partial(fused(oracle).to(bench.device, dtype), cast_x.contiguous(memory_format=flat)),
    }
    channels_last = cast_x.contiguous(memory_format=last)
    theirs = fused(oracle).to(bench.device, dtype, memory_format=last)  # type: ignore[call-overload]
    folded = fold(cast(Any, ours)).to(bench.device, dtype)
    forms["timm fused, channels-last"] = partial(theirs, channels_last)
    forms["iformer"] = partial(folded, channels_last)
    if bench.device.type == "cuda":
        forms["timm fused, channels-last, CUDA graph"] = graphed(theirs, channels_last)
        forms["iformer, CUDA graph"] = graphed(folded, channels_last)
    return forms


def compiled_forms(bench: Bench, name: str, x: torch.Tensor, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Both networks by `torch.compile`, channels-last, with CUDA graphs where there is a GPU."""
    oracle, ours = pair(name)
    channels_last = x.to(dtype).contiguous(memory_format=torch.channels_last)
    mode = "reduce-overhead" if bench.device.type == "cuda" else "default"
    theirs = fused(oracle).to(bench.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = {"timm fused, compiled": theirs, "iformer, compiled": fold(cast(Any, ours)).to(bench.device, dtype)}
    return {
        label: partial(torch.compile(network, mode=mode, dynamic=False), channels_last)
        for label, network in networks.items()
    }


def time_forms(
    bench: Bench, forms: dict[str, Callable[[], Any]], expected: torch.Tensor, precision: str, baseline: str
) -> dict[str, Any]:
    """Check that all forms compute the same logits, then time them interleaved."""
    errors = {}
    for label, call in forms.items():
        error = (call().float() - expected).norm() / expected.norm()
        errors[label] = float(error)
        if not errors[label] <= TOLERANCE[precision]:
            raise AssertionError(f"{label}: relative error {errors[label]:.2g} of its logits in {precision}")
    timings = interleaved(forms, rounds=bench.rounds, warmup=2, synchronize=bench.wait)
    return {
        label: {
            **timing,
            "images/s": len(expected) / timings.median(label),
            f"times as fast as {baseline}": timings.ratio(baseline, label),
            "relative error": errors[label],
        }
        for label, timing in timings.to_plain().items()
    }


@torch.inference_mode()
def inference(
    bench: Bench,
    make: Callable[[Bench, str, torch.Tensor, torch.dtype], dict[str, Callable[[], Any]]],
    baseline: str,
) -> dict[str, Any]:
    """Every network in every precision at every batch size, the first of each most important."""
    result: dict[str, Any] = {}
    for precision, batch in ((precision, batch) for precision in DTYPES for batch in bench.batches):
        for name in bench.models:
            what = f"{name}, {precision}, batch {batch}"
            if not bench.fits(f"{baseline}: {what}"):
                continue
            bench.free()
            with recorded_errors(result, what):
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(batch, 3, bench.size, bench.size, generator=generator).to(bench.device)
                expected = exactly(copy.deepcopy(pair(name)[0]).to(bench.device), x)
                forms = make(bench, name, x, DTYPES[precision])
                result[what] = time_forms(bench, forms, expected, precision, baseline)
                show(what, result[what], baseline)
    return result


def exactly(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The logits in fp32 without TF32, in pieces that fit in memory."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        return torch.cat([network(piece) for piece in torch.split(x, 64)])
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def show(what: str, forms: dict[str, Any], baseline: str) -> None:
    """Print a measurement in one line."""
    cells = [
        f"{label} {form['images/s']:.0f}/s {form[f'times as fast as {baseline}']:.2f}x"
        for label, form in forms.items()
        if isinstance(form, dict)
    ]
    print(f"{what}: " + "; ".join(cells), flush=True)


# ---------------------------------------------------------------------------------------------------- training


def training_steps(bench: Bench, data: Path) -> dict[str, Any]:
    """The step of `iformer train` against that of timm's script, as they come and compiled."""
    steps: dict[str, Any] = {}
    for compiled in (False, True):
        for name in training_models(bench):
            what = f"{name}, compiled" if compiled else name
            if bench.fits(f"training step: {what}"):
                with recorded_errors(steps, what):
                    steps[what] = training_step(bench, name, data, compiled=compiled)
    return steps


def training_loops(bench: Bench, data: Path) -> dict[str, Any]:
    """The loop of `iformer train` from shards against that of timm's script from the same files."""
    loops: dict[str, Any] = {}
    began = time.monotonic()
    shards = data.parent / "shards"
    pack(load_data(repeated(data, bench.repeats)), shards)
    print(f"shards: {time.monotonic() - began:.0f} s", flush=True)
    for name in training_models(bench):
        if bench.fits(f"training loop: {name}"):
            with recorded_errors(loops, name):
                loops[name] = training_loop(bench, name, data, shards)
    return loops


def training_models(bench: Bench) -> list[str]:
    """The networks whose training is measured; L2 and H take the time of all others."""
    return [name for name in bench.models if name not in ("iformer_l2", "iformer_h")]


def repeated(data: Path, times: int) -> Path:
    """Add hard links to each training image, so that it is there `times` times."""
    for path in list((data / "train").glob("*/*.jpg")):
        for number in range(1, times):
            os.link(path, path.with_name(f"{path.stem}-{number}.jpg"))
    return data


def sides(
    bench: Bench, name: str, data: Path, our_data: Path, *, compiled: bool = False
) -> dict[str, Callable[[], Any]]:
    """Return functions that build timm's side, ours, and ours with CUDA graphs, by the recipe imagenet-300."""
    settings: dict[str, Any] = {
        "batch_size": bench.train_batch,
        "workers": bench.workers,
        "compile": compiled,
        "precision": "bf16",
        "size": bench.size,
    }
    recipe = cast(Any, load_recipe("imagenet-300", settings, model=name))
    graphs = cast(
        Any, load_recipe("imagenet-300", {**settings, "cuda_graphs": True, "compile": False}, model=name)
    )
    return {
        "timm": partial(Timms, name, data, recipe, bench.device, bench.workers),
        "iformer": partial(Ours, name, our_data, recipe, bench.device),
        "iformer, CUDA graphs": partial(Ours, name, our_data, graphs, bench.device),
    }


def training_step(bench: Bench, name: str, data: Path, *, compiled: bool) -> dict[str, Any]:
    """One prepared batch again and again: time, images/s and peak memory of both sides.

    timm's step runs twice: with the memory format of its script as it comes (NCHW), and with `--channels-last`.
    Ours runs as it comes and with CUDA graphs. At the end, the weights of these two are compared.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(bench.train_batch, 3, bench.size, bench.size, generator=generator).to(bench.device)
    labels = torch.randint(0, CLASSES, (bench.train_batch,), generator=generator).to(bench.device)
    makes = sides(bench, name, data, data, compiled=compiled)
    layouts = {
        "timm": torch.contiguous_format,
        "timm, channels-last": torch.channels_last,
        "iformer": torch.channels_last,
        "iformer, CUDA graphs": torch.channels_last,
    }
    weights: dict[str, dict[str, torch.Tensor]] = {}
    peaks: dict[str, float | None] = {}
    calls: dict[str, Callable[[], None]] = {}
    bench.free()
    began = time.perf_counter()
    for label, layout in layouts.items():
        side = makes["timm" if label.startswith("timm") else label]()
        if isinstance(side, Ours):
            weights[label] = side.step.state.model.state_dict()
        if isinstance(side, Timms):
            side.network = side.network.to(memory_format=layout)
        batch: Batch = {
            "images": images.contiguous(memory_format=layout),
            "labels": labels,
            "indices": torch.arange(bench.train_batch),
        }

        def step(side: Any = side, batch: Batch = batch) -> None:
            # timm's script has cuDNN try its algorithms; `iformer train` does not, so that it can resume exactly
            torch.backends.cudnn.benchmark = isinstance(side, Timms)
            side.train({**batch, "images": batch["images"].clone()})

        others = bench.allocated_gib()
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        for _ in range(3):  # the second step captures graphs
            step()
        bench.wait()
        peak = bench.peak_gib()
        peaks[label] = None if peak is None else peak - others
        calls[label] = step
    seconds = time.perf_counter() - began
    timings = interleaved(calls, rounds=max(3, bench.rounds // 2), warmup=2, synchronize=bench.wait)
    torch.backends.cudnn.benchmark = bench.device.type == "cuda"
    result: dict[str, Any] = {
        label: {
            **timing,
            "images/s": bench.train_batch / timings.median(label),
            "peak GiB": peaks[label],
            "times as fast as timm": timings.ratio("timm", label),
        }
        for label, timing in timings.to_plain().items()
    }
    result["largest difference of our weights"] = max(
        float((value.float() - weights["iformer, CUDA graphs"][key].float()).abs().max())
        for key, value in weights["iformer"].items()
    )
    result["seconds until each had made three steps"] = seconds
    show(f"training step, {name}{', compiled' if compiled else ''}", result, "timm")
    return result


def training_loop(bench: Bench, name: str, data: Path, shards: Path) -> dict[str, Any]:
    """Both loops on the same images, ours from shards: images/s and the share of time spent waiting for data."""
    result: dict[str, Any] = {}
    bench.free()
    for label, make in sides(bench, name, data, shards).items():
        seconds, waited = loop_seconds(make(), bench.loop_steps, bench.wait)
        result[label] = {"images/s": bench.train_batch * bench.loop_steps / seconds, "data wait": waited}
        print(f"training loop, {name}, {label}: {result[label]}", flush=True)
    result["workers"] = bench.workers
    return result


# ------------------------------------------------------------------------------------- attention, large images


@torch.inference_mode()
def attention(bench: Bench) -> dict[str, Any]:
    """Stored scores against the fused kernel, by number of tokens, in bf16 with iFormer-M's channels."""
    result: dict[str, Any] = {}
    counts = (196, 576, 1024, 2304, 4096, 16384) if bench.size > 64 else (64,)
    for count in counts:
        batch = max(1, min(64, 2**16 // count))
        q, k = (torch.randn(batch, count, HEAD_DIM, device=bench.device).bfloat16() for _ in range(2))
        v = torch.randn(batch, count, CHANNELS, device=bench.device).bfloat16()
        what = f"{count} tokens, batch {batch}"
        if bench.fits(f"attention: {what}"):
            with recorded_errors(result, what):
                bench.free()
                calls = {"stored": partial(stored_attention, q, k, v), "fused": partial(fused_attention, q, k, v)}
                timings = interleaved(calls, rounds=bench.rounds, warmup=2, synchronize=bench.wait)
                result[what] = {**timings.to_plain(), "fused is faster by": timings.ratio("stored", "fused")}
                print(f"attention, {what}: {result[what]['fused is faster by']:.2f}x", flush=True)
    return result


CHANNELS, HEAD_DIM = 192, 96
"""Channels of a token's value and of its key in stage 3 of iFormer-M."""

DESIGNS: dict[str, dict[str, Any] | None] = {
    "timm fused": None,
    "plain": {"design": "shma"},
    "chunked, released": {"design": "chunk_hybrid", "preset": "released"},
    "chunked, no global block": {"design": "chunk_hybrid", "windowed_stages": (3, 4), "global_blocks": 0},
}


@torch.inference_mode()
def large_images(bench: Bench) -> dict[str, Any]:
    """iFormer-M's attention designs in bf16, batch 1: time and peak memory by size."""
    result: dict[str, Any] = {}
    oracle, _ = pair("iformer_m")
    for size in bench.large_sizes:
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(bench.device)
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], Any]] = {}
        peaks: dict[str, float | None] = {}
        for label, design in DESIGNS.items():
            what = f"{label}, {size}"
            if not bench.fits(f"large images: {what}"):
                continue
            with recorded_errors(result, what):
                bench.free()
                if design is None:
                    network = fused(oracle)
                else:
                    options = dict(design)
                    config = with_design(network_config("iformer_m"), options.pop("design"), **options)
                    ours = build(config)
                    ours.load_state_dict(from_timm(oracle.state_dict(), network_config("iformer_m")))
                    network = fold(ours.eval())
                network = network.to(bench.device, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
                network(x)
                bench.wait()
                peaks[label], calls[label] = bench.peak_gib(), partial(network, x)
        if not calls:
            continue
        timings = interleaved(calls, rounds=bench.rounds, warmup=2, synchronize=bench.wait)
        for label, timing in timings.to_plain().items():
            result[f"{label}, {size}"] = {**timing, "peak GiB": peaks[label]}
            print(f"{label}, {size}: {timing['median_ms']:.2f} ms, peak {peaks[label]} GiB", flush=True)
    return result


# ----------------------------------------------------------------------------------------------------- profiles


def profiles(bench: Bench, data: Path) -> dict[str, Any]:
    """The most expensive operations of iFormer-M's inference and training step in bf16, at the largest batch."""
    result: dict[str, Any] = {}
    batch = max(bench.batches)
    with recorded_errors(result, "inference"), torch.inference_mode():
        bench.free()
        network = fold(cast(Any, pair("iformer_m")[1])).to(bench.device, torch.bfloat16)
        x = torch.randn(batch, 3, bench.size, bench.size, device=bench.device, dtype=torch.bfloat16)
        print("profile: inference", flush=True)
        result["inference"] = profile(
            partial(network, x.contiguous(memory_format=torch.channels_last)), bench.device
        )
    with recorded_errors(result, "training step"):
        bench.free()
        side = sides(bench, "iformer_m", data, data)["iformer"]()
        images = torch.randn(bench.train_batch, 3, bench.size, bench.size, device=bench.device)
        batch_ = {
            "images": images.contiguous(memory_format=torch.channels_last),
            "labels": torch.zeros(bench.train_batch, dtype=torch.long, device=bench.device),
            "indices": torch.arange(bench.train_batch),
        }
        print("profile: training step", flush=True)
        result["training step"] = profile(
            lambda: side.train({**batch_, "images": batch_["images"].clone()}), bench.device
        )
    return result


# -------------------------------------------------------------------------------------------------- distributed


def distributed(bench: Bench, folder: Path) -> dict[str, Any]:
    """Three steps of SGD with DDP and with FSDP in a group of one process: the losses must be those without."""
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, bench.size, bench.size, generator=generator).to(bench.device)
    labels = torch.arange(8, device=bench.device)
    result: dict[str, Any] = {"backend": backend}

    def losses(wrap: Callable[[nn.Module], nn.Module]) -> list[float]:
        torch.manual_seed(0)
        model = wrap(build(network_config("iformer_t")).to(bench.device).train())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        seen = []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        return seen

    torch.distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        expected = losses(lambda model: model)
        wraps = {"ddp": nn.parallel.DistributedDataParallel, "fsdp": lambda model: ShardedNetwork(model).network}
        for name, wrap in wraps.items():
            with recorded_errors(result, name):
                bench.free()
                seen = losses(cast(Any, wrap))
                difference = max(abs(a - b) for a, b in zip(seen, expected, strict=True))
                if not difference <= 1e-2:
                    raise AssertionError(f"losses {seen}; without {name} {expected}")
                result[name] = {"largest difference of the losses": difference}
                print(f"distributed, {name}: {result[name]}", flush=True)
    finally:
        torch.distributed.destroy_process_group()
    return result


# ------------------------------------------------------------------------------------------------------ the run


def measure(bench: Bench, folder: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """Run the wanted sections in order of importance; `save` is called after each with all figures so far."""
    began = time.monotonic()
    # only the loop reads more of them than their classes, and making them takes a while
    data = make_images(folder / "images", bench.images if "training loop" in bench.sections else CLASSES)
    figures: dict[str, Any] = {"ceilings": ceilings(bench)}
    print(figures["ceilings"], flush=True)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "training step": partial(training_steps, bench, data),
        "inference": partial(inference, bench, eager_forms, "timm amp"),
        "attention": partial(attention, bench),
        "large images": partial(large_images, bench),
        "distributed": partial(distributed, bench, folder),
        "profile": partial(profiles, bench, data),
        "compiled inference": partial(inference, bench, compiled_forms, "timm fused, compiled"),
        "training loop": partial(training_loops, bench, data),
    }
    for name, section in sections.items():
        if bench.begins(name):
            figures[name] = section()
            save({**figures, "skipped for lack of time": bench.skipped, "seconds": time.monotonic() - began})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.0, help="time for all sections")
    parser.add_argument("--only", nargs="+", default=[], choices=list(SECONDS), help="only these sections")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tiny", action="store_true", help="everything in miniature: a test, not a measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    bench = Bench(
        device=device, models=options.models, minutes=options.minutes, sections=options.only or tuple(SECONDS)
    )
    bench.workers = max(1, (os.cpu_count() or 2) - 2)
    if options.tiny:
        bench.batches, bench.size, bench.train_batch, bench.large_sizes = (2,), 64, 4, (128,)
        bench.rounds, bench.workers, bench.images, bench.repeats, bench.loop_steps = 1, 1, 20, 1, 2
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.backends.cudnn.benchmark_limit = 4  # algorithms that cuDNN tries; the default of 10 takes minutes
    folder = Path(tempfile.mkdtemp(prefix="iformer-gpu-"))
    settings = {name: str(value) for name, value in vars(options).items()}

    def save(figures: dict[str, Any]) -> None:
        if options.out:
            write_record(options.out, {"settings": settings, **figures}, device=device)

    try:
        measure(bench, folder, save)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
