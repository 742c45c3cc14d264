"""The start of a run: its folder is locked at once, and its first files are written after the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from iformer.training.distributed import RankContext
from iformer.training.job import TrainJob
from iformer.training.records.logs import RunLog
from iformer.training.records.provenance import describe_device, run_config
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.trackers import open_trackers


class RunStart:
    """Locks the folder of a run and, after the first step, begins its files.

    Only the main rank touches the folder. If the run fails before `begin`, the folder stays as it was: a new one
    is removed, and every file of an earlier run is kept.
    """

    def __init__(self, job: TrainJob, context: RankContext, stack: ExitStack) -> None:
        """Check and lock the folder. `stack` unlocks it at the end and cleans up after an early error.

        Raises:
            UserError: the folder is in use, or cannot be used; see `RunFolder.check`.
            OSError, OutputError: the folder cannot be created or written.
        """
        self._job, self._context, self._stack = job, context, stack
        self._files = files = RunFolder(job.folder)
        self._begun = False
        if context.rank == 0:
            # checked before anything is created, and again by `prepare` once no other run can change it
            files.check(resume=job.resume, overwrite=job.overwrite)
            if not files.path.exists():
                self._after_early_error(files.path.rmdir)
            stack.enter_context(files.reserved())
            files.prepare(resume=job.resume, overwrite=job.overwrite)
            before = self._present()
            self._after_early_error(lambda: self._remove_new(before))
            self._replaced = files.run_files() if job.overwrite else []

    def start_trackers(self, *, step: int) -> None:
        """Start the trackers of a run that starts or continues at an optimizer step.

        Raises:
            UserError: a tracker cannot be started.
        """
        if self._context.rank == 0:
            self._trackers = open_trackers(self._job, step=step)
            self._stack.callback(self._trackers.close)

    def begin(self, provenance: dict[str, Any], *, step: int, keep_bytes: int, config: bool) -> RunLog | None:
        """Remove the run that `--overwrite` replaces, write `config.yaml` and open the log.

        Args:
            provenance: see `iformer.training.records.provenance.run_provenance`.
            step: optimizer step at which the run started or continued.
            keep_bytes: see `RunLog`.
            config: write `config.yaml`; a resumed run keeps its file if its settings are the same.

        Returns:
            The log; None on all ranks but the main one.

        Raises:
            OSError, OutputError: a file cannot be written.
        """
        job, context, files = self._job, self._context, self._files
        if context.rank != 0:
            return None
        for file in self._replaced:
            file.unlink(missing_ok=True)
        if config:
            files.write_config(
                run_config(job, device=context.device, precision=context.precision, provenance=provenance)
            )
        self._trackers.store_ids()
        log = RunLog(files.log, self._trackers, keep_bytes=keep_bytes)
        self._stack.callback(log.close)
        resumed = provenance.get("resumed", [{}])[-1]  # the log has the command of this process
        log.write(
            "resume" if step else "start",
            step=step,
            device=describe_device(context.device),
            processes=context.world_size,
            precision=context.precision,
            **{name: value for name, value in {**provenance, **resumed}.items() if name != "resumed"},
        )
        self._begun = True
        return log

    def _after_early_error(self, undo: Callable[[], None]) -> None:
        """Call `undo` if the stack is left by an exception before the files of the run have begun."""

        def leave(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not None and not self._begun:
                with suppress(OSError):  # the error itself is what the user has to see
                    undo()

        self._stack.push(leave)

    def _present(self) -> set[Path]:
        """Return the paths in the folder that the trackers and `begin` may create, as far as they exist."""
        files = self._files
        paths = (files.config, files.log, files.trackers, files.tensorboard, files.path / "wandb")
        return {path for path in (*paths, *files.tensorboard.glob("*")) if path.exists()}

    def _remove_new(self, before: set[Path]) -> None:
        for path in sorted(self._present() - before, reverse=True):  # files before their folder
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
