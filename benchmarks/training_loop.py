"""Throughput of the training step and the training loop, relative to timm's, interleaved in one process.

Both use the settings of the recipe `imagenet-300` (mixup and cutmix, random erasing, label smoothing,
RandAugment) in bf16 and channels-last. "step" repeats one prepared batch. "loop" reads the same image files
through each library's loader with the same number of workers; the start of an epoch is not counted. timm's side
consists of the parts of its train script: network, optimizer factory, mixup, loss, data set and loader. On a
GPU, `--compile` compiles our network; timm's runs in eager mode with autocast, the default of its script.

    python benchmarks/training_loop.py --models iformer_t iformer_m --out benchmarks/results/training_loop.json
    python benchmarks/training_loop.py --models iformer_m --profile
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from machine import append_record
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # timm marks no exports

from iformer.bench.timing import Timings, interleaved
from iformer.data.sources import load_data
from iformer.data.transforms import allow_no_bits
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.classification.training import classification_job
from iformer.tasks.registry import load_recipe
from iformer.training.distributed import RankContext
from iformer.training.finite import FiniteGuard
from iformer.training.job import RunSettings
from iformer.training.meter import EpochMeter
from iformer.training.network.graphs import with_cuda_graphs
from iformer.training.network.precision import autocast, resolve_precision
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState
from iformer.training.step import OptimizerStep, seed_everything

CLASSES = 10
Batch = dict[str, torch.Tensor]


def make_images(folder: Path, count: int) -> Path:
    """Write JPEG files of ImageNet's usual size (500 x 375, about 100 kB) with structure at several scales."""
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", CLASSES)):
        for number in range(images):
            target = folder / split / f"class {number % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            picture = np.zeros((375, 500, 3), np.float32)
            for scale in (4, 16, 64, 256):
                small = generator.normal(0, 1, (375 // scale + 2, 500 // scale + 2, 3)).astype(np.float32)
                layer = np.kron(small, np.ones((scale, scale, 1), np.float32))[:375, :500]
                picture += layer * scale**0.5
            low, high = picture.min(), picture.max()
            Image.fromarray((255 * (picture - low) / (high - low)).astype(np.uint8)).save(
                target / f"{number}.jpg", quality=90
            )
    return folder


class Ours:
    """The loop of `iformer train`: loader, preparation of a batch, step."""

    name = "iformer"

    def __init__(self, model: str, data: Path, recipe: ClassificationRecipe, device: torch.device) -> None:
        job = classification_job(
            load_data(data),
            RunSettings(
                data_name=str(data),
                recipe=recipe,
                recipe_name="imagenet-300",
                folder=data.parent / "run",
            ),
            model=model,
        )
        self.context = RankContext(
            device=device, precision=resolve_precision(recipe.precision, device), rank=0, world_size=1
        )
        self.recipe = recipe
        state = TrainState.create(job.model, recipe, self.context)
        self.workload = job.workload(job, self.context)
        self.loader = self.workload.train_loader()
        meter, guard = EpochMeter(self.context), FiniteGuard(RunFolder(job.folder), state, self.context)
        network = with_cuda_graphs(state.model, recipe, self.context, say=print)
        self.step = OptimizerStep(state, job.task, recipe, self.context, meter=meter, guard=guard, model=network)
        self.epoch = 0
        self.steps = 0

    def batches(self) -> Generator[Batch, None, None]:
        """A fresh epoch; its workers end with it."""
        self.epoch += 1
        try:
            yield from self.loader.epoch(self.epoch)
        finally:
            self.loader.close()

    def prepare(self, batch: Any) -> Batch:
        """Move a batch to the device, normalise and erase it."""
        return self.workload.prepare(batch)

    def train(self, batch: Batch) -> None:
        """Do one step on a prepared batch."""
        self.steps += 1
        seed_everything(self.recipe.seed, self.steps, 0)
        self.step(dict(batch))


class Timms:
    """The loop of timm's train script, built from the parts of timm."""

    name = "timm"

    def __init__(
        self, model: str, data: Path, recipe: ClassificationRecipe, device: torch.device, workers: int
    ) -> None:
        self.device, self.precision = device, resolve_precision(recipe.precision, device)
        self.network = timm.create_model(model, num_classes=CLASSES).to(device)
        self.network = self.network.to(memory_format=torch.channels_last).train()
        self.optimizer = create_optimizer_v2(
            self.network, opt="adamw", lr=recipe.peak_lr, weight_decay=recipe.weight_decay
        )
        self.mixup = Mixup(
            mixup_alpha=recipe.augment.mixup_alpha,
            cutmix_alpha=recipe.augment.cutmix_alpha,
            switch_prob=recipe.augment.mixup_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=CLASSES,
        )
        self.loss = SoftTargetCrossEntropy()
        self.on_gpu = device.type == "cuda"
        self.options: dict[str, Any] = {
            "input_size": (3, recipe.size, recipe.size),
            "batch_size": recipe.batch_size,
            "is_training": True,
            "use_prefetcher": self.on_gpu,
            "re_prob": recipe.augment.random_erasing,
            "re_mode": "pixel",
            "scale": recipe.augment.scale,
            "hflip": recipe.augment.hflip,
            "auto_augment": recipe.augment.rand_augment,
            "interpolation": recipe.augment.interpolation,
            "num_workers": workers,
            "pin_memory": self.on_gpu,
            "persistent_workers": False,
            "device": device,
        }
        self.dataset = create_dataset("", root=str(data / "train"), split="train", is_training=True)

    def batches(self) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """A fresh epoch; its workers end with it."""
        loader = create_loader(self.dataset, **self.options)
        for step in self.dataset.transform.transforms:
            if hasattr(step, "ops"):
                allow_no_bits(step)  # Pillow 13 stops timm's RandAugment otherwise
        yield from loader

    def prepare(self, batch: Any) -> Batch:
        """Move a batch to the device."""
        images, labels = batch
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        return {"images": images, "labels": labels.to(self.device)}

    def train(self, batch: Batch) -> None:
        """Do one step on a prepared batch; mixing works on a copy of it."""
        images, targets = self.mixup(batch["images"].clone(), batch["labels"])
        with autocast(self.precision, self.device):
            loss = self.loss(self.network(images), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def loop_seconds(side: Ours | Timms, steps: int, wait: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of `steps` steps with loading, after two others, and the share of waiting for data."""
    batches: Generator[Any, None, None] = side.batches()
    for _ in range(2):
        side.train(side.prepare(next(batches)))
    wait()
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        side.train(side.prepare(batch))
    wait()
    seconds = time.perf_counter() - began
    batches.close()
    return seconds, waited / seconds


def compare(model: str, data: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure step and loop of both sides for one network."""
    recipe = load_recipe(
        "imagenet-300",
        {
            "batch_size": options.batch_size,
            "workers": options.workers,
            "compile": options.compile,
            "precision": options.precision,
        },
        model=model,
    )
    assert isinstance(recipe, ClassificationRecipe)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    ours_data = options.shards or data
    sides: list[Ours | Timms] = [
        Timms(model, data, recipe, device, options.workers),
        Ours(model, ours_data, recipe, device),
    ]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, recipe.size, recipe.size, generator=generator)
    fixed: Batch = {
        "images": images.to(device).contiguous(memory_format=torch.channels_last),
        "labels": torch.randint(0, CLASSES, (options.batch_size,), generator=generator).to(device),
        "indices": torch.arange(options.batch_size),
    }
    # both steps get a copy, because mixing changes a batch in place
    calls = {
        side.name: lambda side=side: side.train({**fixed, "images": fixed["images"].clone()}) for side in sides
    }
    steps = interleaved(calls, rounds=options.rounds, warmup=3, synchronize=wait)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    waits: dict[str, list[float]] = {side.name: [] for side in sides}
    order = random.Random(0)
    for _ in range(options.loop_rounds):
        for side in order.sample(sides, len(sides)):
            took, waited = loop_seconds(side, options.loop_steps, wait)
            seconds[side.name].append(took)
            waits[side.name].append(waited)
    loops = Timings(seconds={name: tuple(samples) for name, samples in seconds.items()})
    result: dict[str, Any] = {"precision": resolve_precision(recipe.precision, device)}
    for kind, timings, images_each in (
        ("step", steps, options.batch_size),
        ("loop", loops, options.batch_size * options.loop_steps),
    ):
        if not all(timings.seconds.values()):
            continue
        result[kind] = {
            "speedup over timm": timings.ratio("timm", "iformer"),
            **{f"{name} images/s": images_each / timings.median(name) for name in timings.seconds},
            "timings": timings.to_plain(),
        }
        print(
            f"{model}  {kind}: {result[kind]['speedup over timm']:.2f}x "
            f"({result[kind]['iformer images/s']:.1f} images/s, timm {result[kind]['timm images/s']:.1f})",
            flush=True,
        )
    if loops.seconds["iformer"]:
        result["loop"]["share of time waiting for data"] = {
            name: sorted(shares)[len(shares) // 2] for name, shares in waits.items()
        }
    if options.profile:
        result["profile"] = profile(calls["iformer"], device)
    return result


def profile(call: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """Print and return the 12 operations of a call with the most self time, their share and their number."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # a kernel's time is its operator's as well: count operators, not kernels
    operators = [event for event in profiler.key_averages() if event.device_type == torch.profiler.DeviceType.CPU]
    events = sorted(operators, key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events)
    rows = [
        {"operation": event.key[:160], "share": getattr(event, kind) / total, "calls": event.count / 3}
        for event in events[:12]
    ]
    for row in rows:
        print(f"  {row['share']:6.1%}  {row['calls']:5.0f}  {row['operation'][:100]}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each network, print the throughputs and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["iformer_t", "iformer_m"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loop-rounds", type=int, default=5)
    parser.add_argument("--loop-steps", type=int, default=12)
    parser.add_argument("--images", type=int, default=1024, help="number of generated image files")
    parser.add_argument("--shards", type=Path, help="folder of shards that our loop reads instead of the files")
    parser.add_argument("--precision", default="auto", help="of both sides; auto: bf16 if the processor has it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument("--profile", action="store_true", help="print the most expensive operations of our step")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="iformer-loop-"))
    try:
        needed = (options.loop_steps + 2) * options.batch_size
        data = make_images(folder / "images", max(options.images, needed))
        figures = {model: compare(model, data, options, device) for model in options.models}
    finally:
        shutil.rmtree(folder)
    if options.out:
        settings = {name: str(value) for name, value in vars(options).items()}
        append_record(options.out, {"settings": settings, **figures}, device=device)


if __name__ == "__main__":
    main()
