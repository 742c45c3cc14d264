"""The training loop: one for every task, on one process or many (Accelerate).

Randomness: no random state is ever saved. The order of the images depends on (seed, epoch), an image's
augmentation on (seed, epoch, index), and all that is random inside a step (mixing, erasing, stochastic depth)
on (seed, step, process). A run that was killed at any moment so ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iformer.config.dependencies import require
from iformer.config.metadata import Metadata
from iformer.config.recipe import Recipe
from iformer.data.loader import ImageDataset, Loader, build_loader
from iformer.data.transforms import (
    Normalize,
    Transform,
    TransformSchedule,
    random_erasing,
    train_transform,
)
from iformer.errors import ConfigError, UserError, WeightsError
from iformer.models.complexity import count_parameters
from iformer.models.weights import write_bytes
from iformer.tasks.task import Batch
from iformer.training.checkpoint import (
    Position,
    SavedState,
    check_identity,
    read_state,
    save_network,
    save_state,
    saved_step,
)
from iformer.training.ema import WeightAverage
from iformer.training.evaluate import NetworkPredictor, evaluate, evaluation_loader
from iformer.training.job import TrainJob, classification_job
from iformer.training.logs import ProgressView, RunLog, format_seconds, read_history
from iformer.training.meter import EpochMeter
from iformer.training.optimizer import build_optimizer
from iformer.training.precision import autocast, resolve_precision, run_device
from iformer.training.provenance import describe_device, run_config, run_identity, run_provenance
from iformer.training.results import Evaluation, TrainResult
from iformer.training.run_folder import RunFolder
from iformer.training.schedule import build_schedule

__all__ = ["TrainJob", "TrainResult", "classification_job", "train"]


def train(job: TrainJob) -> TrainResult:
    """Train a network, evaluate it and write its report.

    Raises:
        UserError: the folder is in use, the run in it is another one, the loss is not finite, or anything
            else about the job cannot work; one line that says what to do.
        OSError: the folder cannot be written.
    """
    with ExitStack() as stack:
        return _Run(job, stack).run()


class _Run:
    """The parts of a run and what is done with them."""

    def __init__(self, job: TrainJob, stack: ExitStack) -> None:
        accelerate = require("accelerate", extra="train")
        recipe = job.recipe
        self.job, self.recipe, self._stack = job, recipe, stack
        on_cpu = run_device(job.device).type == "cpu"
        self.accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision="no")
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.processes: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.precision = resolve_precision(recipe.precision, self.device)
        _check_shares(recipe, self.processes)
        self.files = RunFolder(job.folder)
        saved = self._open_folder()

        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.network = job.model.to(self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.network, recipe)
        self.average = (
            WeightAverage(self.network, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.position = Position()
        if saved is not None:
            saved.restore(model=self.network, average=self.average, optimizer=self.optimizer, scaler=self.scaler)
            self.position = saved.position
        self.model: nn.Module = self.accelerator.prepare_model(self.network)

        self.meter = EpochMeter(
            partial(self.accelerator.reduce, reduction="mean"),
            device=self.device,
            processes=self.processes,
        )
        self.normalize = Normalize(job.preprocessing).to(self.device)
        self.erase = random_erasing(recipe.augmentation, self.device)
        self.loader = self._train_loader()
        self.val_loader: Loader | None = None
        self.steps_per_epoch = self.loader.steps
        self.schedule = build_schedule(self.optimizer, recipe, steps_per_epoch=self.steps_per_epoch)
        self.predictor = NetworkPredictor(
            self.evaluated_network,
            job.preprocessing,
            device=self.device,
            precision=self.precision,
            channels_last=recipe.channels_last,
        )
        self.provenance = run_provenance(job, self.identity)
        self.final: Evaluation | None = None
        self._first_bad_step = torch.full((), math.inf, device=self.device)
        self._session_began = time.monotonic()
        self._seconds_before = self.position.seconds
        self._saved_at = time.monotonic()
        self._checks_each_step = self.device.type == "cpu" and self.processes == 1
        self.log = self._open_log()
        self.view = stack.enter_context(self._progress_view())

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one, where there is an average."""
        return self.average.module if self.average is not None else self.network

    # ------------------------------------------------------------------------------------- the run

    def run(self) -> TrainResult:
        self._announce()
        for epoch in range(self.position.epoch, self.recipe.epochs):
            self._train_epoch(epoch)
            self._finish_epoch(epoch)
        if self.final is None:  # resumed after its last epoch
            self.final = self._evaluate(last=True)
        return self._finish(self.final)

    def _train_epoch(self, epoch: int) -> None:
        position = self.position
        self.meter.start(step=position.step_in_epoch, sums=position.sums)
        self.network.train()
        for batch in self.meter.timed(self.loader.epoch(epoch, position.step_in_epoch)):
            self._train_step(batch)
            self._after_step(epoch)

    def _train_step(self, batch: Batch) -> None:
        step = self.position.step
        _seed_everything(self.recipe.seed, step, self.rank)
        self.schedule.step_update(step)
        images = len(batch["labels"])
        parts = _split(self._to_device(batch), self.recipe.grad_accum)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            share = len(part["labels"]) / images
            # gradients of the processes are joined in the last backward pass only
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with autocast(self.precision, self.device):
                    values = self.task.loss(self.model, part)
                self._check_loss(values["loss"])
                self.meter.add(values, share)
                self.scaler.scale(values["loss"] * share).backward()
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.step_in_epoch += 1
        self.meter.count(images)
        if self.average is not None:
            self.average.update(self.position.step)

    def _after_step(self, epoch: int) -> None:
        position, recipe = self.position, self.recipe
        ends = position.step_in_epoch == self.steps_per_epoch
        logs = position.step_in_epoch % recipe.log_every == 0 or ends
        text = self._log_step(epoch) if logs else None
        self.view.advance(recipe.train_size(epoch) ** 2, text)
        due = recipe.checkpoint_steps is not None and position.step % recipe.checkpoint_steps == 0
        if logs and not due:
            due = self._agreed(time.monotonic() - self._saved_at >= 60 * recipe.checkpoint_minutes)
        if due:
            self._save()

    def _finish_epoch(self, epoch: int) -> None:
        position, recipe = self.position, self.recipe
        self._check_finite()
        sums = self.meter.sums()
        self.schedule.step_update(position.step - 1)  # a run that is resumed here has made no step yet
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": position.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "size": recipe.train_size(epoch),
            **{f"train_{name}": total / self.steps_per_epoch for name, total in sums.items()},
            **self.meter.rates(),
        }
        last = epoch + 1 == recipe.epochs
        summary: dict[str, float] = {}
        improved = False
        if last or (epoch + 1) % recipe.eval_every == 0:
            evaluation = self._evaluate(last=last)
            summary = evaluation.summary
            record.update({f"val_{name}": value for name, value in summary.items() if name != "images"})
            improved = self._is_best(evaluation, epoch)
            if last:
                self.final = evaluation
        record["seconds"] = self._seconds()
        self._keep_networks(epoch, summary, improved=improved)
        if self.is_main:
            with self._nothing_lost():
                self.log.write("epoch", **record)
        self.view.say(_epoch_line(record, recipe.epochs))
        position.epoch, position.step_in_epoch, position.sums = epoch + 1, 0, {}
        self.meter.start(step=0, sums={})
        self._save()

    def _finish(self, final: Evaluation) -> TrainResult:
        job = self.job
        seconds = self._seconds()
        metadata = self._metadata(self.recipe.epochs, final.metrics)
        result = TrainResult(
            folder=job.folder,
            model_name=job.model_name,
            data_name=job.data_name,
            recipe=self.recipe,
            recipe_name=job.recipe_name,
            parameters=count_parameters(self.network),
            train_images=len(job.data.train),
            evaluation=final,
            best=self.position.best,
            history=read_history(self.files.log) if self.is_main else [],
            seconds=seconds,
            precision=self.precision,
            device=describe_device(self.device),
            processes=self.processes,
            metadata=metadata,
            problems=list(job.data.problems),
        )
        if self.is_main:
            self._keep_network(self.files.last, metadata)
            record = {
                "metrics": final.metrics,
                "best": self.position.best,
                "seconds": seconds,
                "images": len(final.indices),
                "precision": self.precision,
                "device": result.device,
            }
            write_bytes(self.files.metrics, json.dumps(record, indent=2).encode())
            self.log.write("end", metrics=final.summary, seconds=seconds)
            if job.report:
                result = replace(result, report=_write_report(result))
        self.accelerator.wait_for_everyone()
        return result

    # ------------------------------------------------------------------------------------ its parts

    @property
    def task(self) -> Any:
        return self.job.task

    def _open_folder(self) -> SavedState | None:
        """The state to continue from, or None for a run that begins."""
        job = self.job
        if self.is_main:
            self.files.prepare(resume=job.resume, overwrite=job.overwrite)
        self.accelerator.wait_for_everyone()
        saved = read_state(self.files.state) if job.resume and self.files.state.is_file() else None
        self.identity = run_identity(job, self.precision)
        if saved is not None:
            check_identity(saved.identity, self.identity, folder=job.folder)
        if self.is_main and saved is None:
            self.files.write_config(run_config(job, device=self.device, precision=self.precision))
        self.accelerator.wait_for_everyone()
        return saved

    def _train_loader(self) -> Loader:
        job, recipe = self.job, self.recipe
        stages: list[tuple[int, Transform]] = []
        for epoch in sorted({0, *(start for start, _ in recipe.size_schedule)}):
            size = recipe.train_size(epoch)
            preprocessing = replace(job.preprocessing, size=(size, size))
            stages.append((epoch, train_transform(preprocessing, recipe.augmentation)))
        dataset = ImageDataset(job.data.train, TransformSchedule(stages), seed=recipe.seed, cache=recipe.cache)
        loader = build_loader(
            dataset,
            batch_size=recipe.batch_size,
            train=True,
            seed=recipe.seed,
            workers=None if recipe.workers == "auto" else recipe.workers,
            rank=self.rank,
            world_size=self.processes,
            pin_memory=self.device.type == "cuda",
        )
        self._stack.callback(loader.close)
        return loader

    def _validation_loader(self) -> Loader:
        if self.val_loader is None:
            recipe = self.recipe
            self.val_loader = evaluation_loader(
                self.job.data.val,
                self.job.preprocessing,
                batch_size=recipe.eval_batch_size or recipe.batch_size,
                workers=None if recipe.workers == "auto" else recipe.workers,
                cache=recipe.cache,
                rank=self.rank,
                world_size=self.processes,
            )
            self._stack.callback(self.val_loader.close)
        return self.val_loader

    def _open_log(self) -> Any:
        if not self.is_main:
            return None
        log = RunLog(
            self.files.log,
            self.files.tensorboard if self.job.tensorboard else None,
            keep_bytes=self.position.log_bytes,
            purge_from=self.position.step + 1 if self.job.resume else None,
        )
        self._stack.callback(log.close)
        log.write(
            "resume" if self.position.step else "start",
            step=self.position.step,
            device=describe_device(self.device),
            processes=self.processes,
            precision=self.precision,
            **self.provenance,
        )
        return log

    def _progress_view(self) -> ProgressView:
        works = [self.recipe.train_size(epoch) ** 2 for epoch in range(self.recipe.epochs)]
        epoch = self.position.epoch
        done = sum(works[:epoch]) * self.steps_per_epoch
        done += works[epoch] * self.position.step_in_epoch if epoch < len(works) else 0
        return ProgressView(total=sum(works) * self.steps_per_epoch, done=done, shown=self.is_main)

    def _announce(self) -> None:
        job = self.job
        begin = f"continuing at step {self.position.step}" if self.position.step else "training"
        self.view.say(
            f"{begin}: {job.model_name} on {job.data_name}, {len(job.data.train)} images of "
            f"{len(job.task.class_names)} classes, {len(job.data.val)} to validate; recipe {job.recipe_name}, "
            f"{self.recipe.epochs} epochs of {self.steps_per_epoch} steps, {self.precision} on "
            f"{describe_device(self.device)}" + (f", {self.processes} processes" if self.processes > 1 else "")
        )

    # --------------------------------------------------------------------------------- in an epoch

    def _to_device(self, batch: Batch) -> Batch:
        on_device = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        images = self.normalize(on_device["images"]).contiguous(memory_format=layout)
        on_device["images"] = self.erase(images) if self.erase is not None else images
        return on_device

    def _check_loss(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite; where looking would wait for the device, remember the step."""
        if self._checks_each_step:
            if not math.isfinite(loss.item()):
                self._stop_not_finite(self.position.step)
            return
        here = torch.where(loss.detach().isfinite(), math.inf, float(self.position.step))
        self._first_bad_step = torch.minimum(self._first_bad_step, here)

    def _agreed(self, wish: bool) -> bool:
        """The main process's answer, on all of them: their clocks differ."""
        if self.processes == 1:
            return wish
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor(float(wish), device=self.device)).item())

    def _log_step(self, epoch: int) -> str:
        self._check_finite()
        means, rate = self.meter.lap(self.position.step_in_epoch)
        if self.is_main:
            with self._nothing_lost():
                self.log.write(
                    "step",
                    step=self.position.step,
                    epoch=epoch + 1,
                    **means,
                    lr=self.optimizer.param_groups[0]["lr"],
                    images_per_second=rate,
                    seconds=self._seconds(),
                )
        accuracy = f", accuracy {means['accuracy']:.1f} %" if "accuracy" in means else ""
        return f"epoch {epoch + 1}/{self.recipe.epochs}, loss {means['loss']:.4f}{accuracy}, {rate:.1f} images/s"

    def _check_finite(self) -> None:
        if self._checks_each_step:
            return
        from accelerate.utils import gather

        first = gather(self._first_bad_step.reshape(1)).min().item()
        if math.isfinite(first):
            self._stop_not_finite(int(first))

    def _stop_not_finite(self, step: int) -> None:
        good, saved = "no checkpoint was saved before it", saved_step(self.files.state)
        if saved is not None:
            good = f"the last good checkpoint is {self.files.state}, of step {saved}"
            if self.files.last.is_file():
                good += f", and the last evaluated network is {self.files.last}"
        raise UserError(
            f"the loss is not finite at step {step} (epoch {self.position.epoch + 1}); {good}; "
            "a lower --lr, clip_grad, or precision=fp32 may help"
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._session_began

    # ------------------------------------------------------------------------- evaluating and saving

    def _evaluate(self, *, last: bool) -> Evaluation:
        """Evaluate; the last time, whose number is published, in fp32."""
        if self.processes > 1:
            from accelerate.utils import broadcast

            # running statistics differ between the processes; the main process's are kept
            for buffer in self.evaluated_network.buffers():
                buffer.copy_(broadcast(buffer))
        self.network.eval()
        self.predictor.precision = "fp32" if last else self.precision
        evaluation = evaluate(self.predictor, self._validation_loader(), self.task, device=self.device)
        self.network.train()
        return evaluation

    def _is_best(self, evaluation: Evaluation, epoch: int) -> bool:
        best, name = self.position.best, self.task.primary_metric
        if best and best[name] >= evaluation.metrics[name]:
            return False
        self.position.best = {"epoch": epoch + 1, "step": self.position.step, **evaluation.summary}
        return True

    def _metadata(self, epoch: int, metrics: dict[str, Any]) -> Metadata:
        kept = {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
        return Metadata(
            task=self.task.name,
            class_names=self.task.class_names,
            preprocessing=self.job.preprocessing,
            metrics=kept,
            provenance={**self.provenance, "epoch": epoch, "step": self.position.step},
        )

    def _keep_networks(self, epoch: int, summary: dict[str, float], *, improved: bool) -> None:
        self._check_finite_weights()
        if not self.is_main:
            return
        metadata = self._metadata(epoch + 1, dict(summary))
        with self._nothing_lost():
            self._keep_network(self.files.last, metadata)
            if improved:
                self._keep_network(self.files.best, metadata)

    def _keep_network(self, path: Path, metadata: Metadata) -> None:
        save_network(self.evaluated_network, path, name=self.job.model_name, metadata=metadata)

    def _save(self) -> None:
        """Save the state to continue from. All processes come here; the main one writes."""
        self._check_finite()
        self.position.sums = self.meter.sums()
        self.position.seconds = self._seconds()
        self._saved_at = time.monotonic()
        self._check_finite_weights()
        if not self.is_main:
            return
        with self._nothing_lost():
            self.position.log_bytes = self.log.sync()
            save_state(
                self.files.state,
                model=self.network,
                average=self.average,
                optimizer=self.optimizer,
                scaler=self.scaler,
                position=self.position,
                identity=self.identity,
            )

    @contextmanager
    def _nothing_lost(self) -> Iterator[None]:
        """Say, where a file cannot be written, what is still there and how to go on."""
        try:
            yield
        except (OSError, WeightsError) as error:
            saved = saved_step(self.files.state)
            kept = f"--resume continues from step {saved}" if saved is not None else "nothing was saved before"
            reason = error if isinstance(error, WeightsError) else f"{error.strerror}: {error.filename}"
            raise UserError(f"stopped at step {self.position.step}: {reason}; {kept}") from error

    def _check_finite_weights(self) -> None:
        """A finite loss can have an infinite gradient: such weights must not take a good checkpoint's place."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self.network.parameters()])
        if not torch.stack(norms).isfinite().all():
            self._stop_not_finite(self.position.step)


def _check_shares(recipe: Recipe, processes: int) -> None:
    passes = processes * recipe.grad_accum
    if recipe.batch_size % passes:
        raise ConfigError(
            f"Recipe.batch_size is {recipe.batch_size}; expected a multiple of {passes}, "
            f"as {processes} processes make it in {recipe.grad_accum} passes each"
        )
    if recipe.mixes and recipe.batch_size // passes % 2:
        raise ConfigError(
            f"Recipe.batch_size is {recipe.batch_size}, which is {recipe.batch_size // passes} in each of "
            f"{passes} passes; expected an even number there, because mixup and cutmix mix images in pairs"
        )


def _split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in at most `parts` parts whose sizes differ by no more than rounding."""
    if parts == 1:
        return [batch]
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=True)]


def _seed_everything(*numbers: int) -> None:
    """Seed the global generators with a mix of numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from it)
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    rate = record["images_per_second"]
    parts = [
        f"epoch {record['epoch']}/{epochs}",
        f"loss {record['train_loss']:.4f}" if "train_loss" in record else "",
        f"accuracy {record['train_accuracy']:.1f} %" if "train_accuracy" in record else "",
        f"validation loss {record['val_loss']:.4f}" if "val_loss" in record else "",
        f"validation top-1 {record['val_top1']:.2f} %" if "val_top1" in record else "",
        f"{rate:.1f} images/s" if rate else "",
        format_seconds(record["seconds"]),
    ]
    return ", ".join(part for part in parts if part)


def _write_report(result: TrainResult) -> Path:
    from iformer.training.report import write_report

    return write_report(result.folder, result=result, history=result.history)
