"""Time of a training step of iFormer relative to a plain step in fp32 and NCHW, as in the authors' loop, on a CPU.

The plain step: timm's network (the same layers as the authors'), fp32, NCHW, AdamW, cross entropy. Ours is the
step of `iformer train` with EMA: bf16 autocast if the CPU has bf16 arithmetic, channels-last, the faster
gradient of depthwise convolutions, fused AdamW. Both are interleaved in one process. The figure is the median
over rounds of the speedup.

    python benchmarks/training_step.py --out benchmarks/results/training_step.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from machine import append_record
from torch.nn import functional as F

from iformer import create_model
from iformer.bench.timing import interleaved
from iformer.tasks.registry import load_recipe
from iformer.training.distributed import RankContext
from iformer.training.network.precision import resolve_precision
from iformer.training.network.prepare import prepare_network
from iformer.training.optimizer import build_optimizer


def plain_step(name: str, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Return a plain training step: fp32, NCHW."""
    model = timm.create_model(name, num_classes=1000).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def our_step(name: str, images: torch.Tensor, labels: torch.Tensor, precision: str) -> Callable[[], None]:
    """Return the step of `iformer train` with EMA."""
    recipe = load_recipe("finetune")
    resolved = resolve_precision(precision, images.device)
    context = RankContext(
        device=images.device,
        precision=resolved,
    )
    model, average = prepare_network(create_model(name), recipe, context)
    assert average is not None
    optimizer = build_optimizer(model, recipe)
    images = images.contiguous(memory_format=torch.channels_last)
    steps = 0

    def step() -> None:
        nonlocal steps
        with context.autocast():
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        average.update(steps)

    return step


def main() -> None:
    """Measure, print the speedups and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="iformer_t")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    labels = torch.randint(0, 1000, (options.batch_size,))
    timings = interleaved(
        {
            "plain fp32 NCHW": plain_step(options.model, images, labels),
            "iformer fp32": our_step(options.model, images, labels, "fp32"),
            "iformer auto": our_step(options.model, images, labels, "auto"),
        },
        rounds=options.rounds,
        warmup=2,
    )
    precision = resolve_precision("auto", images.device)
    figures = {
        "model": options.model,
        "batch_size": options.batch_size,
        "size": options.size,
        "auto is": precision,
        "steps": {
            label: timing
            | {
                "images_per_second": options.batch_size / timings.median(label),
                "speedup over plain": timings.ratio("plain fp32 NCHW", label),
            }
            for label, timing in timings.to_plain().items()
        },
    }
    for label, step in figures["steps"].items():
        print(
            f"{options.model}  {label:16}  {step['median_ms']:7.0f} ms  {step['images_per_second']:6.1f} images/s"
            f"  {step['speedup over plain']:.2f}x"
        )
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
