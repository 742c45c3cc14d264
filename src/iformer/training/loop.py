"""The training loop: one for every task, on one process or many (Accelerate).

Here are the epochs, and what is said and saved between them. What differs by task is a `Workload`, one
optimizer step is `iformer.training.step`, files are `iformer.training.checkpointer`.

Randomness: no random state is ever saved. The order of the images depends on (seed, epoch), an image's
augmentation on (seed, epoch, index), and all that is random inside a step (mixing, erasing, stochastic depth)
on (seed, step, process). A run that was killed at any moment so ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.files import write_text
from iformer.models.complexity import count_parameters
from iformer.training.checkpointer import Checkpointer
from iformer.training.distributed import RankContext
from iformer.training.finite import FiniteGuard
from iformer.training.job import TrainJob
from iformer.training.meter import EpochMeter
from iformer.training.network.fsdp import ShardedNetwork
from iformer.training.network.precision import resolve_precision
from iformer.training.network.prepare import prepare_network
from iformer.training.optimizer import build_optimizer
from iformer.training.records.logs import ProgressView, RunLog, epoch_line, read_history
from iformer.training.records.provenance import (
    describe_device,
    identity_defaults,
    run_config,
    run_identity,
    run_provenance,
)
from iformer.training.records.results import Evaluation, TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.schedule import RunLength, build_schedule
from iformer.training.signals import StopRequests
from iformer.training.state import SavedState, TrainProgress, check_identity, read_last_good
from iformer.training.step import OptimizerStep, check_shares, seed_everything

__all__ = ["train"]


def train(job: TrainJob) -> TrainResult:
    """Train a network, evaluate it and write its report.

    Raises:
        UserError: the folder is in use, the run in it is another one, the loss is not finite, or anything
            else about the job cannot work; one line that says what to do.
        StoppedBySignalError: a scheduler told it to stop; its state is saved.
        OSError, OutputError: the folder cannot be written.
    """
    with ExitStack() as stack:
        return _Run(job, stack).run()


class _Run:
    """The parts of a run and what is done with them."""

    def __init__(self, job: TrainJob, stack: ExitStack) -> None:
        accelerate = require("accelerate", extra="train")
        recipe = job.recipe
        self.job, self.recipe, self._stack = job, recipe, stack
        device = resolve_device(job.device)
        if device.index is not None:  # Accelerator has no argument for it: it takes the current device
            torch.accelerator.set_device_index(device.index)
        self.accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.context = RankContext(
            device=self.device,
            precision=resolve_precision(recipe.precision, self.device),
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        check_shares(recipe, self.context.world_size)
        self.files = RunFolder(job.folder)
        self.stop = stack.enter_context(StopRequests(self.context.world_size))
        saved = self._open_folder()

        self.network, self.average = prepare_network(job.model, recipe, self.context)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.context.precision == "fp16")
        self.position = TrainProgress()
        if saved is not None:
            saved.restore_network(self.network, self.average)
            self.position = saved.position
        fsdp = recipe.parallel == "fsdp" and self.context.world_size > 1
        sharded = ShardedNetwork(self.network) if fsdp else None
        model: nn.Module = self.network if fsdp else self.accelerator.prepare_model(self.network)
        optimizer = build_optimizer(self.network, recipe)
        if saved is not None:
            saved.restore_optimizer(self.network, optimizer, scaler)

        self.meter = EpochMeter(
            partial(self.accelerator.reduce, reduction="mean"),
            device=self.device,
            world_size=self.context.world_size,
        )
        self.guard = FiniteGuard(self.files, self.position, device=self.device, world_size=self.context.world_size)
        self.workload = job.workload(job, self.context)
        stack.callback(self.workload.close)
        self.loader = self.workload.train_loader()
        self.length = RunLength(recipe, steps_per_epoch=self.loader.steps)
        self.optimizer = optimizer
        self.schedule = build_schedule(optimizer, recipe, self.length)
        self.step = OptimizerStep(
            recipe=recipe,
            task=job.task,
            context=self.context,
            accelerator=self.accelerator,
            network=self.network,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            meter=self.meter,
            guard=self.guard,
        )
        provenance = run_provenance(job, self.identity)
        self.keeper = Checkpointer(
            job,
            self.files,
            position=self.position,
            network=self.network,
            average=self.average,
            optimizer=optimizer,
            scaler=scaler,
            identity=self.identity,
            provenance=provenance,
            sharded=sharded,
        )
        self.final: Evaluation | None = None
        self._session_began = time.monotonic()
        self._seconds_before = self.position.seconds
        self._saved_at = time.monotonic()
        self.log = self._open_log(provenance)
        self.view = stack.enter_context(self._progress_view())

    # ------------------------------------------------------------------------------------- the run

    def run(self) -> TrainResult:
        self._announce()
        for epoch in range(self.position.epoch, self.length.epochs):
            self._train_epoch(epoch)
            self._finish_epoch(epoch)
        if self.final is None:  # resumed after its last epoch
            self.keeper.collect()
            self.final = self._evaluate(last=True)
        return self._finish(self.final)

    def _train_epoch(self, epoch: int) -> None:
        position = self.position
        self.meter.start(step=position.step_in_epoch, sums=position.sums)
        self.network.train()
        batches = self.meter.timed(self.loader.epoch(epoch, position.step_in_epoch))
        for batch in islice(batches, self.length.steps_in(epoch) - position.step_in_epoch):
            seed_everything(self.recipe.seed, position.step, self.context.rank)
            self.schedule.step_update(position.step)
            self.step(self.workload.prepare(batch))
            position.step += 1
            position.step_in_epoch += 1
            if self.average is not None:
                self.average.update(position.step)
            self._after_step(epoch)

    def _after_step(self, epoch: int) -> None:
        position, recipe = self.position, self.recipe
        ends = position.step_in_epoch == self.length.steps_in(epoch)
        logs = position.step_in_epoch % recipe.log_every == 0 or ends
        text = self._log_step(epoch) if logs else None
        self.view.advance(recipe.train_size(epoch) ** 2, text)
        due = recipe.checkpoint_steps is not None and position.step % recipe.checkpoint_steps == 0
        late = time.monotonic() - self._saved_at >= 60 * recipe.checkpoint_minutes
        stop, late = self.stop.agreed(late)  # clocks and signals differ between processes
        if due or late or stop:
            self._save()
        if stop:
            self.accelerator.wait_for_everyone()
            raise self.stop.stopped(position.step, saved=True)

    def _finish_epoch(self, epoch: int) -> None:
        position, recipe = self.position, self.recipe
        self.guard.check_remembered()
        self.keeper.collect()
        sums = self.meter.sums()
        self.schedule.step_update(position.step - 1)  # a run that is resumed here has made no step yet
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": position.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "size": recipe.train_size(epoch),
            **{f"train_{name}": total / self.length.steps_in(epoch) for name, total in sums.items()},
            **self.meter.rates(),
        }
        last = epoch + 1 == self.length.epochs
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
            with self.keeper.nothing_lost():
                self.log.write("epoch", **record)
        self.view.say(epoch_line(record, self.length.epochs, self.job.task))
        position.epoch, position.step_in_epoch, position.sums = epoch + 1, 0, {}
        self.meter.start(step=0, sums={})
        self._save()

    def _finish(self, final: Evaluation) -> TrainResult:
        job = self.job
        seconds = self._seconds()
        metadata = self.keeper.metadata(self.length.epochs, final.metrics)
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
            precision=self.context.precision,
            device=describe_device(self.device),
            processes=self.context.world_size,
            metadata=metadata,
            warnings=list(job.data.warnings),
        )
        if self.is_main:
            self.keeper.keep_network(self.files.last, metadata)
            record = {
                "metrics": final.metrics,
                "best": self.position.best,
                "seconds": seconds,
                "images": final.metrics["images"],
                "precision": self.context.precision,
                "device": result.device,
            }
            write_text(self.files.metrics, json.dumps(record, indent=2))
            self.log.write("end", metrics=final.summary, seconds=seconds)
            if job.report:
                result = replace(result, report=self.workload.write_report(result))
        self.accelerator.wait_for_everyone()
        return result

    # ------------------------------------------------------------------------------------ its parts

    def _open_folder(self) -> SavedState | None:
        """The state to continue from, or None for a run that begins."""
        job = self.job
        if self.is_main:
            # before anything is made in it, and by `prepare` once more when nobody else can change it
            self.files.check(resume=job.resume, overwrite=job.overwrite)
            self._stack.enter_context(self.files.reserved())
            self.files.prepare(resume=job.resume, overwrite=job.overwrite)
        self.accelerator.wait_for_everyone()
        found = read_last_good(self.files) if job.resume else None
        saved, problem = found or (None, None)
        if problem is not None and self.is_main:
            print(f"note: {problem}", file=sys.stderr, flush=True)
        self.identity = run_identity(job, self.context.precision)
        if saved is not None:
            defaults = identity_defaults(job.recipe)
            before = {**saved.identity, "recipe": job.recipe.nested(saved.identity.get("recipe", {}))}
            check_identity(before, self.identity, folder=job.folder, defaults=defaults)
        if self.is_main and saved is None:
            self.files.write_config(run_config(job, device=self.device, precision=self.context.precision))
        self.accelerator.wait_for_everyone()
        return saved

    def _open_log(self, provenance: dict[str, Any]) -> Any:
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
            processes=self.context.world_size,
            precision=self.context.precision,
            **provenance,
        )
        return log

    def _progress_view(self) -> ProgressView:
        """Progress in pixels: the work of a step is in proportion to them."""
        length, position = self.length, self.position
        works = [self.recipe.train_size(epoch) ** 2 for epoch in range(length.epochs)]
        done = sum(work * length.steps_in(epoch) for epoch, work in enumerate(works[: position.epoch]))
        done += works[position.epoch] * position.step_in_epoch if position.epoch < len(works) else 0
        total = sum(work * length.steps_in(epoch) for epoch, work in enumerate(works))
        return ProgressView(total=total, done=done, shown=self.is_main)

    def _announce(self) -> None:
        job, processes = self.job, self.context.world_size
        begin = f"continuing at step {self.position.step}" if self.position.step else "training"
        self.view.say(
            f"{begin}: {job.model_name} on {job.data_name}, {len(job.data.train)} images of "
            f"{len(job.task.class_names)} classes, {len(job.data.val)} to validate; recipe {job.recipe_name}, "
            f"{self.length.epochs} epochs of {self.length.steps_per_epoch} steps, {self.context.precision} on "
            f"{describe_device(self.device)}" + (f", {processes} processes" if processes > 1 else "")
        )

    # --------------------------------------------------------------------------------- in an epoch

    def _log_step(self, epoch: int) -> str:
        self.guard.check_remembered()
        means, rate = self.meter.lap(self.position.step_in_epoch)
        if self.is_main:
            with self.keeper.nothing_lost():
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
        return f"epoch {epoch + 1}/{self.length.epochs}, loss {means['loss']:.4f}{accuracy}, {rate:.1f} images/s"

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._session_began

    # ------------------------------------------------------------------------- evaluating and saving

    def _evaluate(self, *, last: bool) -> Evaluation:
        """Evaluate; the last time, whose number is published, in fp32."""
        evaluated = self.keeper.evaluated_network
        if self.context.world_size > 1:
            from accelerate.utils import broadcast

            # running statistics differ between the processes; the main process's are kept
            for buffer in evaluated.buffers():
                buffer.copy_(broadcast(buffer))
        evaluated.eval()
        evaluation = self.workload.evaluate(evaluated, precision="fp32" if last else self.context.precision)
        self.network.train()
        return evaluation

    def _is_best(self, evaluation: Evaluation, epoch: int) -> bool:
        best, name = self.position.best, self.job.task.primary_metric
        if best and best[name] >= evaluation.metrics[name]:
            return False
        self.position.best = {"epoch": epoch + 1, "step": self.position.step, **evaluation.summary}
        return True

    def _keep_networks(self, epoch: int, summary: dict[str, float], *, improved: bool) -> None:
        self.guard.check_weights(self.network)
        if not self.is_main:
            return
        metadata = self.keeper.metadata(epoch + 1, dict(summary))
        with self.keeper.nothing_lost():
            self.keeper.keep_network(self.files.last, metadata)
            if improved:
                self.keeper.keep_network(self.files.best, metadata)

    def _save(self) -> None:
        """Save the state to continue from. All processes come here; the main one writes."""
        self.guard.check_remembered()
        self.position.sums = self.meter.sums()
        self.position.seconds = self._seconds()
        self._saved_at = time.monotonic()
        self.guard.check_weights(self.network)
        if not self.is_main:
            self.keeper.help_to_keep_state()
            return
        with self.keeper.nothing_lost():
            self.position.log_bytes = self.log.sync()
            self.keeper.keep_state()
