"""What a run would need and take: found out on a few of its own steps, before it is begun."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from iformer.config.recipe import Recipe
from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.models.complexity import count_macs, count_parameters
from iformer.training.distributed import RankContext
from iformer.training.finite import FiniteGuard
from iformer.training.job import TrainJob
from iformer.training.meter import EpochMeter
from iformer.training.network.precision import resolve_precision
from iformer.training.network.prepare import prepare_network
from iformer.training.optimizer import build_optimizer
from iformer.training.protocol import Workload
from iformer.training.records.provenance import describe_device
from iformer.training.records.run_folder import RunFolder
from iformer.training.schedule import RunLength
from iformer.training.state import TrainProgress
from iformer.training.step import OptimizerStep, seed_everything

GPUS = {"8 x A100": (8, 312e12, 2.0), "8 x H100": (8, 989e12, 3.0)}
"""Number, peak of dense bf16 products in FLOP/s (the makers' data sheets) and US dollars an hour of one: a round
price, for scale only."""

UTILISATION = {"8 x A100": 0.08, "8 x H100": 0.05}
"""Share of the peak that the rule takes a training step to reach: networks with depthwise convolutions are bound
by memory. An assumption, not a measurement."""

CPU_BATCH = 64
"""Largest batch that is tried on a CPU, where a recipe for GPUs would not fit."""

_WARMUP, _STEPS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and cost of a whole recipe somewhere."""

    where: str
    images_per_second: float
    hours: float
    dollars: float | None = None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was found."""

    model: str
    data: str
    train_images: int
    val_images: int
    recipe: str
    parameters: int
    gmacs: float
    """Of one image at the recipe's size."""
    teacher_gmacs: float
    """0 without a teacher."""
    device: str
    precision: str
    batch_size: int
    measured_batch: int
    """Images of the passes that were measured: of one pass of one process, on a CPU at most `CPU_BATCH`."""
    steps: int
    """Optimizer steps of the whole run."""
    memory_bytes: int
    """Peak of this process: of the GPU's memory, or of the machine's."""
    images_per_second: float
    """Over the measured steps, data included, on this one process."""
    data_wait: float
    """Share of that time spent waiting for images."""
    disk_bytes: int
    """What the run folder will hold."""
    disk_free: int
    here: Estimate
    by_rule: tuple[Estimate, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def dry_run(job: TrainJob) -> DryRun:
    """Train for a few steps on the job's own data and keep nothing; the run folder is not touched.

    Making the job has checked the data and fetched the network's and the teacher's weights already.

    Raises:
        UserError: the disk has no room for the run, or anything else about the job cannot work.
    """
    require("accelerate", extra="train")
    require("torchmetrics", extra="train")
    disk_bytes, disk_free = _check_disk(job)
    recipe = job.recipe
    device = resolve_device(job.device)
    measured_batch = _measured_batch(recipe, device)
    own = replace(recipe, batch_size=measured_batch, lr_batch=measured_batch, grad_accum=1)
    context = RankContext(
        device=device,
        precision=resolve_precision(recipe.precision, device),
    )
    parameters, macs = count_parameters(job.model), count_macs(job.model, (recipe.size, recipe.size))
    teacher = getattr(getattr(job.task, "teacher", None), "network", None)
    teacher_macs = count_macs(teacher, (recipe.size, recipe.size)) if teacher is not None else 0
    rate, waited = _measure(replace(job, recipe=own), context)
    length = RunLength(recipe, steps_per_epoch=max(1, len(job.data.train) // recipe.batch_size))
    sizes = [recipe.train_size(epoch) / recipe.size for epoch in range(length.epochs)]
    images = recipe.batch_size * sum(size**2 * length.steps_in(epoch) for epoch, size in enumerate(sizes))
    evaluations = -(-length.epochs // recipe.eval_every)
    # an evaluation is a forward pass, which is a third of a step
    images += evaluations * len(job.data.val) / 3
    flops = 6 * macs + 2 * teacher_macs
    by_rule = []
    for name, (count, peak, price) in GPUS.items():
        fast = count * peak * UTILISATION[name] / flops
        hours = images / fast / 3600
        by_rule.append(Estimate(where=name, images_per_second=fast, hours=hours, dollars=hours * count * price))
    return DryRun(
        model=job.model_name,
        data=job.data_name,
        train_images=len(job.data.train),
        val_images=len(job.data.val),
        recipe=job.recipe_name,
        parameters=parameters,
        gmacs=macs / 1e9,
        teacher_gmacs=teacher_macs / 1e9,
        device=describe_device(device),
        precision=context.precision,
        batch_size=recipe.batch_size,
        measured_batch=measured_batch,
        steps=length.steps,
        memory_bytes=_peak_memory(device),
        images_per_second=rate,
        data_wait=waited,
        disk_bytes=disk_bytes,
        disk_free=disk_free,
        here=Estimate(where=describe_device(device), images_per_second=rate, hours=images / rate / 3600),
        by_rule=tuple(by_rule),
    )


def _measured_batch(recipe: Recipe, device: torch.device) -> int:
    """Images of one pass of one process, as many as are launched now; an even number, as mixing needs."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = max(1, recipe.batch_size // recipe.grad_accum // processes)
    if device.type == "cpu":
        share = min(share, CPU_BATCH)
    return share + share % 2


def _measure(job: TrainJob, context: RankContext) -> tuple[float, float]:
    """Images per second at the recipe's size, and the share of the time spent waiting for them."""
    workload = job.workload(job, context)
    try:
        return _timed_steps(job, context, workload)
    finally:
        workload.close()


def _timed_steps(job: TrainJob, context: RankContext, workload: Workload) -> tuple[float, float]:
    recipe, device = job.recipe, context.device
    import accelerate

    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    network, average = prepare_network(job.model, recipe, context)
    meter = EpochMeter(lambda tensor: tensor, device=device, world_size=1)
    step = OptimizerStep(
        recipe=recipe,
        task=job.task,
        context=context,
        accelerator=accelerator,
        network=network,
        model=network,
        optimizer=build_optimizer(network, recipe),
        scaler=torch.amp.GradScaler(device.type, enabled=context.precision == "fp16"),
        meter=meter,
        guard=FiniteGuard(RunFolder(job.folder), TrainProgress(), device=device, world_size=1),
    )
    # the last epochs are at the recipe's full size, which is what needs most
    batches = workload.train_loader().epoch(recipe.epochs - 1, 0)
    times, waits, counts = [], [], []
    for number in range(_WARMUP + _STEPS):
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:  # fewer images than that
            break
        waited = time.perf_counter() - began
        seed_everything(recipe.seed, number, 0)
        step(workload.prepare(batch))
        if average is not None:
            average.update(number + 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        waits.append(waited)
        counts.append(len(batch["indices"]))
    kept = slice(_WARMUP if len(times) > _WARMUP else 0, None)
    seconds = statistics.median(times[kept])
    return statistics.median(counts[kept]) / seconds, min(1.0, statistics.median(waits[kept]) / seconds)


def _check_disk(job: TrainJob) -> tuple[int, int]:
    """Bytes that the run folder will hold and that are free where it will be.

    Raises:
        UserError: they are fewer.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in job.model.state_dict().values())
    copies = 1 if job.recipe.ema_decay is None else 2
    # two states with two moments each, best and last, and the file being written
    needed = 3 * (copies + 2) * weights + 2 * weights
    folder = job.folder.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{job.folder}: the run needs {needed / 2**20:,.0f} MiB for its checkpoints, "
            f"{free / 2**20:,.0f} MiB are free there"
        )
    return needed, free


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there
