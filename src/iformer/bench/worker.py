"""A worker process that keeps one artifact loaded and times it on request.

Each artifact has its own process, because runtimes in one process share thread pools, allocators and memory. Only
one of the processes works at a time.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iformer.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

_PATIENCE = 600.0
"""Longest time, in seconds, that loading or one turn may take."""


class Worker:
    """An artifact in its own process; a context manager that ends the process."""

    def __init__(self, artifact: Path, *, threads: int, batch: int = 1, postprocess: bool = False) -> None:
        """Start the process and load the artifact. With `postprocess`, timed calls include the postprocessing.

        Raises:
            UserError: the artifact cannot be loaded or run on this machine.
        """
        context = _context()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, artifact, threads, batch, postprocess), daemon=True
        )
        self._artifact = artifact
        self._process.start()
        theirs.close()
        try:
            self.load_seconds: float = self._ask()
            """Seconds from opening the file to the first answer, without the import of the runtime."""
        except BaseException:
            self.close()
            raise

    def turn(self, *, warmup: int, calls: int) -> list[float]:
        """Make `warmup` calls, then `calls` timed calls; return the seconds of each timed call.

        Raises:
            UserError: the process gives no answer in time, or crashes.
        """
        seconds: list[float] = self._ask((warmup, calls))
        return seconds

    def memory_mb(self) -> float:
        """Return the increase of the process's resident memory, in MB, since before the artifact was loaded."""
        megabytes: float = self._ask(None)
        return megabytes

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, *order: Any) -> Any:
        try:
            for one in order:
                self._connection.send(one)
            if not self._connection.poll(_PATIENCE):
                raise UserError(f"{self._artifact.name} gave no answer within {_PATIENCE:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise UserError(f"the process that ran {self._artifact.name} was killed or crashed") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _context() -> SpawnContext | ForkServerContext:
    """Return how worker processes are started.

    On Linux they are forked from a process that has imported PyTorch and share its memory: with ONNX Runtime each
    takes 0.14 GB in place of 0.38 GB. `bench --peers` has 53 of them at the same time.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iformer.deploy.runner", "iformer.tasks.registry"])
    return context


def _serve(connection: Connection, artifact: Path, threads: int, batch: int, postprocess: bool) -> None:
    import signal

    import torch

    from iformer.dependencies import require
    from iformer.deploy.artifact import read_record
    from iformer.deploy.exportable import named
    from iformer.deploy.quiet import quiet
    from iformer.deploy.runner import open_artifact
    from iformer.deploy.runtimes.registry import find_runtime
    from iformer.tasks.registry import find_task

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    torch.set_num_threads(threads)
    process = require("psutil", extra="bench").Process()

    def resident() -> int:
        resident_bytes: int = process.memory_info().rss
        return resident_bytes

    try:
        with quiet():
            info = read_record(artifact)
            find_runtime(info.runtime).require(info.precision)
            before = resident()
            start = time.perf_counter()
            runner = open_artifact(artifact, threads=threads)
            shape = (batch, len(info.preprocessing.mean), *info.preprocessing.size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8)
            runner(images)
            connection.send(time.perf_counter() - start)
    except UserError as error:
        connection.send(error)
        return
    run: Callable[[torch.Tensor], Any] = runner.run
    fed = runner.prepare(images)
    if postprocess:
        answer = find_task(info.task).module("inference").postprocessor(info)
        names = list(info.outputs)

        @torch.inference_mode()
        def run(fed: torch.Tensor) -> Any:
            return answer(named(names, [torch.as_tensor(value) for value in runner.run(fed)]))

    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order is None:
            connection.send((resident() - before) / 1e6)
            continue
        warmup, calls = order
        for _ in range(warmup):
            run(fed)
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            run(fed)
            seconds.append(time.perf_counter() - start)
        connection.send(seconds)
