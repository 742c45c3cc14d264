"""Measure a few steps of a run, and estimate the time, memory and disk space of the whole run."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from iformer.config.recipe import Recipe
from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.models.complexity import count_macs, count_parameters
from iformer.models.detector import Detector
from iformer.training.distributed import RankContext, launched_processes
from iformer.training.finite import FiniteGuard
from iformer.training.job import TrainJob
from iformer.training.meter import EpochMeter
from iformer.training.network.precision import resolve_precision
from iformer.training.protocol import Workload
from iformer.training.records.provenance import describe_device
from iformer.training.records.run_folder import RunFolder
from iformer.training.schedule import RunLength
from iformer.training.state import TrainState
from iformer.training.step import OptimizerStep, seed_everything

GPUS = {"8 x A100": (8, 312e12, 2.0), "8 x H100": (8, 989e12, 3.0)}
"""Machines for the estimate: number of GPUs, dense bf16 peak of one GPU in FLOP/s (data sheet), and the rounded
price of one GPU in US dollars per hour."""

UTILISATION = {"8 x A100": 0.08, "8 x H100": 0.05}
"""Share of the peak (0 to 1) that a training step is assumed to reach. The values are low because depthwise
convolutions are bound by memory. They are not measured."""

CPU_BATCH = 64
"""Largest number of images per pass that is measured on a CPU, where a recipe's batch for GPUs may not fit."""

_WARMUP, _STEPS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and cost of a whole run on one machine."""

    where: str
    images_per_second: float
    hours: float
    dollars: float | None = None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Measurements of a few training steps, and estimates for the whole run."""

    model: str
    data: str
    train_images: int
    val_images: int
    recipe: str
    parameters: int
    gmacs: float | None
    """Multiply-accumulates of the network for one image at the recipe's size, in billions. None: not counted, for
    R-CNNs, whose operations depend on the image."""
    teacher_gmacs: float
    """Multiply-accumulates of the teacher for one image, in billions; 0 without a teacher."""
    device: str
    precision: str
    batch_size: int
    measured_batch: int
    """Number of images in one forward pass of one process; at most `CPU_BATCH` on a CPU."""
    steps: int
    """Optimizer steps of the whole run."""
    memory_bytes: int
    """Peak memory of this process in bytes: GPU memory on CUDA, else resident memory."""
    images_per_second: float
    """Training rate of this process in images per second, data loading included."""
    data_wait: float
    """Share of the time spent waiting for images, 0 to 1."""
    disk_bytes: int
    """Size of the run folder at the end of the run, in bytes."""
    disk_free: int
    here: Estimate
    by_rule: tuple[Estimate, ...]
    """Estimates for servers; classifiers only."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def dry_run(job: TrainJob) -> DryRun:
    """Measure a few training steps on the data of the job; no files are written.

    Building the job has already checked the data and fetched the weights of network and teacher.

    Raises:
        MissingDependencyError: Accelerate or torchmetrics is not installed.
        UserError: there is not enough disk space, or the job cannot run.
    """
    require("accelerate", extra="train")
    require("torchmetrics", extra="train")
    disk_bytes, disk_free = _check_disk(job)
    recipe = job.recipe
    device = resolve_device(job.device)
    measured_batch = _measured_batch(recipe, device)
    own = replace(recipe, batch_size=measured_batch, lr_batch=measured_batch, grad_accum=1)
    context = RankContext(device=device, precision=resolve_precision(recipe.precision, device))
    network = job.published(job.model)
    parameters = count_parameters(network)
    size, in_chans = (recipe.size, recipe.size), len(job.preprocessing.mean)
    macs = None if isinstance(network, Detector) else count_macs(network, size, in_chans=in_chans)
    teacher = getattr(getattr(job.task, "teacher", None), "network", None)
    teacher_macs = count_macs(teacher, size, in_chans=in_chans) if teacher is not None else 0
    rate, waited = _measure(replace(job, recipe=own), context)
    length = RunLength(recipe, steps_per_epoch=max(1, len(job.data.train) // recipe.batch_size))
    sizes = [recipe.train_size(epoch) / recipe.size for epoch in range(length.epochs)]
    images = recipe.batch_size * sum(size**2 * length.steps_in(epoch) for epoch, size in enumerate(sizes))
    evaluations = -(-length.epochs // recipe.eval_every)
    # a forward pass is a third of a step
    images += evaluations * len(job.data.val) / 3
    by_rule = []
    if macs is not None and recipe.task == "classify":
        flops = 6 * macs + 2 * teacher_macs
        for name, (count, peak, price) in GPUS.items():
            fast = count * peak * UTILISATION[name] / flops
            hours = images / fast / 3600
            by_rule.append(
                Estimate(where=name, images_per_second=fast, hours=hours, dollars=hours * count * price)
            )
    return DryRun(
        model=job.model_name,
        data=job.data_name,
        train_images=len(job.data.train),
        val_images=len(job.data.val),
        recipe=job.recipe_name,
        parameters=parameters,
        gmacs=None if macs is None else macs / 1e9,
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
    """Return the number of images per forward pass and process, rounded up to a multiple of `images_per_group`."""
    share = max(1, recipe.batch_size // recipe.grad_accum // launched_processes())
    if device.type == "cpu":
        share = min(share, CPU_BATCH)
    return share + -share % recipe.images_per_group


def _measure(job: TrainJob, context: RankContext) -> tuple[float, float]:
    """Return the images per second at the recipe's size, and the share of the time spent waiting for data."""
    with closing(job.workload(job, context)) as workload:
        return _timed_steps(job, context, workload)


def _timed_steps(job: TrainJob, context: RankContext, workload: Workload) -> tuple[float, float]:
    recipe, device = job.recipe, context.device
    state = TrainState.create(job.model, recipe, context)
    meter, guard = EpochMeter(context), FiniteGuard(RunFolder(job.folder), state, context)
    step = OptimizerStep(state, job.task, recipe, context, meter=meter, guard=guard)
    # the last epoch has the full image size
    batches = workload.train_loader().epoch(recipe.epochs - 1, 0)
    times, waits, counts = [], [], []
    for number in range(_WARMUP + _STEPS):
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited = time.perf_counter() - began
        seed_everything(recipe.seed, number, 0)
        step(workload.prepare(batch))
        if state.ema is not None:
            state.ema.update(number + 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        waits.append(waited)
        counts.append(len(batch["indices"]))
    kept = slice(_WARMUP if len(times) > _WARMUP else 0, None)
    seconds = statistics.median(times[kept])
    return statistics.median(counts[kept]) / seconds, min(1.0, statistics.median(waits[kept]) / seconds)


def _check_disk(job: TrainJob) -> tuple[int, int]:
    """Return the size of the run folder at the end of the run and the free disk space there, in bytes.

    Raises:
        UserError: there is not enough space, or the folder is not writable.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in job.model.state_dict().values())
    copies = 1 if job.recipe.ema_decay is None else 2
    # two states with two moments each, best and last, and one file that is being written
    needed = 3 * (copies + 2) * weights + 2 * weights
    folder = job.folder.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        raise UserError(f"{job.folder} cannot be written: no right to write into {existing}; give another --out")
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
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes elsewhere
