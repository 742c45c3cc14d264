"""The training loop, for every task, on one process or several.

`_Run.__init__` prepares a new or resumed job for its first step; then come the epochs, then the report. The job,
with data and network, is made by `iformer.tasks.training_job`. One optimizer step is in `step.py`. A task adds a
`Workload` (`protocol.py`), and a resumed run restores a `TrainState` (`state.py`).

No random state is saved. The order of the images depends on (seed, epoch), the augmentation of an image on (seed,
epoch, index), and everything random in a step (mixup, erasing, stochastic depth) on (seed, step, rank). So a run
that is killed at any moment and resumed ends with the same weights as one that is not.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from iformer.dependencies import require
from iformer.errors import counted
from iformer.files import json_text, write_text
from iformer.models.complexity import count_parameters
from iformer.models.weights.resolve import load
from iformer.training.checkpointer import Checkpointer
from iformer.training.distributed import (
    check_ranks_agree,
    explain_lost_processes,
    launch,
    one_training_per_process,
)
from iformer.training.finite import FiniteGuard
from iformer.training.job import TrainJob
from iformer.training.meter import EpochMeter
from iformer.training.network.graphs import with_cuda_graphs
from iformer.training.network.precision import Precision
from iformer.training.optimizer import base_lr
from iformer.training.records.history import read_history, read_starts
from iformer.training.records.logs import ProgressView, RunLog, epoch_line
from iformer.training.records.pace import Pace
from iformer.training.records.provenance import agreed_identity, describe_device, identity_defaults, run_provenance
from iformer.training.records.results import Evaluation, TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.run_start import RunStart
from iformer.training.schedule import RunLength, build_schedule, describe_end, stops_early
from iformer.training.signals import SignalHandler
from iformer.training.state import SavedState, TrainState, check_identity, extend, read_newest_state
from iformer.training.step import OptimizerStep, check_batch_size, seed_everything


def train(job: TrainJob) -> TrainResult:
    """Train a network, evaluate it and write its report.

    Raises:
        MissingDependencyError: a package of the extra `train` is not installed.
        UserError: the folder is in use or holds another run, this process is already training, the loss is not
            finite, or the job cannot run.
        StoppedBySignalError: a scheduler's signal stopped the run; its state is saved.
        OSError, OutputError: the folder cannot be written.
    """
    with one_training_per_process(), explain_lost_processes(), ExitStack() as stack:
        run = _Run(job, stack)
        for epoch in range(run.progress.epoch, run.length.epochs):
            if stops_early(run.progress, run.recipe):
                break
            run.train_epoch(epoch)
            run.finish_epoch(epoch)
        return run.finish()


class _Run:
    """A run in progress: state, data, logs and checkpoints."""

    def __init__(self, job: TrainJob, stack: ExitStack) -> None:
        """Prepare everything up to the first step. `stack` closes files, workers and locks at the end."""
        self.job, self.recipe = job, job.recipe

        # otherwise only the first evaluation or the report would fail
        for module in ("torchmetrics", *(["matplotlib.figure"] if job.report else [])):
            require(module, extra="train")

        # 1. the ranks, which must have the same settings and data
        self.accelerator, self.context = launch(job.device, job.recipe.precision)
        self.is_main = self.context.rank == 0
        self.identity = agreed_identity(job, self.context.precision)
        check_batch_size(self.recipe, self.context.world_size)
        self.signals = stack.enter_context(SignalHandler(self.context.world_size))

        # 2. lock the run folder; with --resume read its newest sound state and check settings and data against it
        self.files = RunFolder(job.folder)
        self.start = RunStart(job, self.context, stack)
        saved = self._read_state()

        # 3. network, EMA and optimizer: as for a new run, then with the saved values
        self.state = TrainState.create(job.model, self.recipe, self.context)
        if saved is not None:
            self.state.load(saved)
        self.progress = self.state.progress
        model = self.state.model if self.state.sharded else self.accelerator.prepare_model(self.state.model)
        if self.state.ema is not None:
            self.state.ema.follow(self.state.model)  # Accelerate replaces the buffers of a network that it wraps
        model = with_cuda_graphs(model, self.recipe, self.context, say=lambda text: self.view.say(text))

        # 4. data and schedule, which need no saved state: both are functions of the epoch and step
        self.workload = job.workload(job, self.context)
        stack.callback(self.workload.close)
        self.loader = self.workload.train_loader()
        self.length = RunLength(self.recipe, steps_per_epoch=self.loader.steps)
        self.schedule = build_schedule(self.state.optimizer, self.recipe, self.length)
        self.length.check_position(self.progress.epoch, self.progress.step_in_epoch, source=self.files.state)

        # 5. the step, and what is logged and saved around it
        starts = [] if saved is None else read_starts(self.files.log, end=self.progress.log_bytes)
        self.meter = EpochMeter(self.context)
        self.guard = FiniteGuard(self.files, self.state, self.context)
        self.step = OptimizerStep(
            self.state, job.task, self.recipe, self.context, meter=self.meter, guard=self.guard, model=model
        )
        self.checkpointer = Checkpointer(
            job,
            self.files,
            self.state,
            identity=self.identity,
            provenance=run_provenance(job, self.identity, starts),
            is_main=self.is_main,
            finishes=self.workload.finishes,
        )
        self.checkpointer.check_best()
        self.final: tuple[nn.Module, Evaluation] | None = None
        self._began = self._saved_at = time.monotonic()
        self._seconds_before, self._first_step = self.progress.seconds, self.progress.step
        self.start.start_trackers(step=self._first_step)
        self.log: RunLog | None = None
        self.view = stack.enter_context(self._progress_view())
        self._announce()

    # --------------------------------------------------------------------------------------- the epochs

    def train_epoch(self, epoch: int) -> None:
        """Train the steps of an epoch that are not done yet."""
        progress, state = self.progress, self.state
        self.meter.start(step=progress.step_in_epoch, sums=progress.sums)
        state.model.train()
        batches = self.meter.timed(self.loader.epoch(epoch, progress.step_in_epoch))
        for batch in islice(batches, self.length.steps_in(epoch) - progress.step_in_epoch):
            seed_everything(self.recipe.seed, progress.step, self.context.rank)
            self.schedule.step_update(progress.step)
            self.step(self.workload.prepare(batch))
            progress.step += 1
            progress.step_in_epoch += 1
            if state.ema is not None:
                state.ema.update(progress.step)
            self._after_step(epoch)

    def finish_epoch(self, epoch: int) -> None:
        """Evaluate, write the last and the best network, log the epoch and save the state."""
        progress, recipe = self.progress, self.recipe
        self._begin_files()
        self.guard.check_remembered()
        network = self.state.inference_model()
        sums = self.meter.sums()
        self.schedule.step_update(progress.step - 1)  # if the run resumed here, no step has set the learning rate
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": progress.step,
            "lr": base_lr(self.state.optimizer),
            "size": recipe.train_size(epoch),
            **{f"train_{name}": total / self.length.steps_in(epoch) for name, total in sums.items()},
            **self.meter.rates(),
        }
        last = epoch + 1 == self.length.epochs
        summary: dict[str, float] = {}
        improved = False
        if last or (epoch + 1) % recipe.eval_every == 0:
            evaluation = self._evaluate(network, last=last)
            summary = evaluation.summary
            record.update({f"val_{name}": value for name, value in summary.items() if name != "images"})
            improved = self.checkpointer.is_best(evaluation, epoch + 1, precision=self._precision(last=last))
            if self.log is not None and self.log.trackers:
                picture = self.workload.draw_predictions(network, evaluation)
                self.log.trackers.log_picture("predictions", picture, progress.step)
            if last:
                self.final = network, evaluation
        record["seconds"] = self._seconds()
        self.guard.check_weights()
        metadata = self.checkpointer.metadata(epoch + 1, dict(summary), precision=self._precision(last=last))
        self.checkpointer.save_network(network, self.files.last, metadata)
        if improved:
            self.checkpointer.save_best(network, metadata)
        self._write_log("epoch", **record)
        self.view.say(epoch_line(record, self.length.epochs, self.job.task))
        progress.epoch, progress.step_in_epoch, progress.sums = epoch + 1, 0, {}
        self.meter.start(step=0, sums={})
        self._save_state()
        if not last:
            self._stop_on_signal(self.signals.poll()[0])

    def finish(self) -> TrainResult:
        """Write the final network, metrics and report."""
        self._begin_files()
        if self.final is None:  # stopped early, or resumed after its last epoch
            metric = self.job.task.metric_label
            self.view.say(describe_end(self.progress, self.recipe, self.length, metric=metric))
            network = self.state.inference_model()
            self.final = network, self._evaluate(network, last=True)
        network, evaluation = self.final
        evaluation = self.workload.finish(network.eval(), evaluation)
        metadata = self.checkpointer.metadata(self.progress.epoch, evaluation.metrics, precision="fp32")
        self.checkpointer.check_best()
        if self.checkpointer.best_is_lost:
            self.checkpointer.is_best(evaluation, self.progress.epoch, precision="fp32")
            self.checkpointer.save_best(network, metadata)
            self._save_state()
        else:
            self._finish_best()
        job, seconds = self.job, self._seconds()
        result = TrainResult(
            folder=job.folder,
            model_name=job.model_name,
            data_name=job.data_name,
            recipe=self.recipe,
            recipe_name=job.recipe_name,
            parameters=count_parameters(job.published(self.state.model)),
            train_images=len(job.data.train),
            evaluation=evaluation,
            best=self.progress.best,
            history=read_history(self.files.log) if self.is_main else [],
            seconds=seconds,
            precision=self.context.precision,
            device=describe_device(self.context.device),
            processes=self.context.world_size,
            metadata=metadata,
            warnings=[*job.data.warnings, *self.checkpointer.warnings],
        )
        self.checkpointer.save_network(network, self.files.last, metadata)
        if self.is_main:
            record = {
                "metrics": evaluation.metrics,
                "best": self.progress.best,
                "seconds": seconds,
                "images": evaluation.metrics["images"],
                "precision": self.context.precision,
                "device": result.device,
            }
            write_text(self.files.metrics, json_text(record, indent=2))
            self._write_log("end", metrics=evaluation.summary, seconds=seconds)
            if job.report:
                result = replace(result, report=self.workload.write_report(result))
        self.accelerator.wait_for_everyone()
        return result

    def _finish_best(self) -> None:
        """Let the task finish the best network too, and write that network again with the new metrics."""
        if not self.workload.finishes or not self.files.best.is_file():
            return
        network = load(self.files.best).to(self.context.device)
        metadata = network.metadata
        if metadata.provenance.get("finished"):  # the run was resumed, and no later network was better
            return
        evaluation = self.workload.finish(network.eval(), self._evaluate(network, last=True))
        changed = {name: value for name, value in evaluation.summary.items() if name != "images"}
        provenance = {**metadata.provenance, "metrics_precision": "fp32", "finished": True}
        metadata = replace(metadata, metrics=metadata.metrics | changed, provenance=provenance)
        self.checkpointer.save_network(network, self.files.best, metadata)

    # ----------------------------------------------------------------------------------------- starting

    def _read_state(self) -> SavedState | None:
        """Return the state to resume from; None for a new run."""
        job = self.job
        self.accelerator.wait_for_everyone()
        saved, warning = (job.resume and read_newest_state(self.files)) or (None, None)
        check_ranks_agree(
            {"the saved state": ["none" if saved is None else f"step {saved.progress.step}"]},
            remedy=f"--out {job.folder} must be one folder that every machine sees",
        )
        self._writes_config = saved is None
        if warning is not None and self.is_main:
            print(f"note: {warning}", file=sys.stderr, flush=True)
        if saved is not None:
            defaults = identity_defaults(job.recipe)
            before = {**saved.identity, "recipe": job.recipe.nested(saved.identity.get("recipe", {}))}
            changes = extend(saved.progress, before["recipe"], self.identity["recipe"])
            check_identity(before, self.identity, folder=job.folder, defaults=defaults)
            if changes and self.is_main:
                print(f"note: {changes}", file=sys.stderr, flush=True)
                self._writes_config = True
            if self.is_main and warning is not None:  # every rank has read the state
                os.replace(saved.path, self.files.state)  # the damaged one must not replace it at the next save
        self.accelerator.wait_for_everyone()
        return saved

    def _begin_files(self) -> None:
        """Begin the files of the run, once its first step is done."""
        if self.is_main and self.log is None:
            progress = self.progress
            self.log = self.start.begin(
                self.checkpointer.provenance,
                step=self._first_step,
                keep_bytes=progress.log_bytes,
                config=self._writes_config,
            )

    def _progress_view(self) -> ProgressView:
        """Return a progress view in units of training pixels, because a step's time is proportional to them."""
        length, progress = self.length, self.progress
        works = [self.recipe.train_size(epoch) ** 2 for epoch in range(length.epochs)]
        done = sum(work * length.steps_in(epoch) for epoch, work in enumerate(works[: progress.epoch]))
        done += works[progress.epoch] * progress.step_in_epoch if progress.epoch < len(works) else 0
        total = sum(work * length.steps_in(epoch) for epoch, work in enumerate(works))
        pace = Pace() if self.is_main and self.context.device.type == "cpu" else None
        return ProgressView(total=total, done=done, shown=self.is_main, pace=pace)

    def _announce(self) -> None:
        job, processes = self.job, self.context.world_size
        classes = f" of {counted(len(job.task.class_names), 'class')}" if job.task.class_names else ""
        begin = f"continuing at step {self.progress.step}" if self.progress.step else "training"
        self.view.say(
            f"{begin}: {job.model_name} on {job.data_name}, {counted(len(job.data.train), 'image')}{classes}, "
            f"{len(job.data.val)} to validate; recipe {job.recipe_name}, "
            f"{counted(self.length.epochs, 'epoch')} of {counted(self.length.steps_per_epoch, 'step')}, "
            f"{self.context.precision} on {describe_device(self.context.device)}"
            + (f", {processes} processes" if processes > 1 else "")
        )

    # -------------------------------------------------------------------------------- logging and saving

    def _after_step(self, epoch: int) -> None:
        """Log the step, save the state if a save is due, and stop if a signal arrived."""
        progress, recipe, last = self.progress, self.recipe, self.length.steps_in(epoch)
        self._begin_files()
        logs = progress.step_in_epoch % recipe.log_every == 0 or progress.step_in_epoch == last
        self.view.advance(recipe.train_size(epoch) ** 2, self._log_step(epoch) if logs else None)
        due = recipe.checkpoint_steps is not None and progress.step % recipe.checkpoint_steps == 0
        late = time.monotonic() - self._saved_at >= 60 * recipe.checkpoint_minutes
        stop, late = self.signals.poll(late)  # clocks and signals differ between the ranks
        if due or late or stop:
            self._save_state()
        self._stop_on_signal(stop)

    def _stop_on_signal(self, stop: bool) -> None:
        """Stop if a signal arrived on any rank. The state must have been saved before."""
        if stop:
            self.accelerator.wait_for_everyone()
            raise self.signals.stopped(self.progress.step)

    def _log_step(self, epoch: int) -> str:
        self.guard.check_remembered()
        means, rate = self.meter.lap(self.progress.step_in_epoch)
        self._write_log(
            "step",
            step=self.progress.step,
            epoch=epoch + 1,
            **means,
            lr=base_lr(self.state.optimizer),
            images_per_second=rate,
            seconds=self._seconds(),
        )
        accuracy = f", accuracy {means['accuracy']:.1f} %" if "accuracy" in means else ""
        return f"epoch {epoch + 1}/{self.length.epochs}, loss {means['loss']:.4f}{accuracy}, {rate:.1f} images/s"

    def _write_log(self, event: str, **values: Any) -> None:
        if self.log is not None:
            with self.checkpointer.explain_failure():
                self.log.write(event, **values)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _evaluate(self, network: nn.Module, *, last: bool) -> Evaluation:
        """Evaluate a network in the run's precision, or if `last`, in fp32, for the published metrics."""
        if self.context.world_size > 1:
            from accelerate.utils import broadcast

            # running statistics differ between the ranks: use those of rank 0
            for buffer in network.buffers():
                buffer.copy_(broadcast(buffer))
        network.eval()
        evaluation = self.workload.evaluate(network, precision=self._precision(last=last))
        self.state.model.train()
        return evaluation

    def _precision(self, *, last: bool) -> Precision:
        return "fp32" if last else self.context.precision

    def _save_state(self) -> None:
        """Save the state to resume from. Every rank must call it."""
        self.guard.check_remembered()
        self.progress.sums = self.meter.sums()
        self.progress.seconds = self._seconds()
        self._saved_at = time.monotonic()
        self.guard.check_weights()
        if self.log is not None:
            with self.checkpointer.explain_failure():
                self.progress.log_bytes = self.log.sync()
        self.checkpointer.save_state()
