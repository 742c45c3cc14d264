"""A process that holds one artifact loaded and times it when it is its turn.

One process each, because runtimes that share one also share thread pools, allocators and memory. All but one
wait at any time.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from iformer.errors import UserError

_PATIENCE = 600.0
"""Seconds that a process may take to load an artifact or for one turn."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What loading an artifact cost."""

    seconds: float
    """From the file to the first answer, the runtime's own import not counted."""


class Worker:
    """An artifact in a process of its own; a context manager that ends it."""

    def __init__(self, artifact: Path, *, threads: int, batch: int = 1) -> None:
        """Start the process and load.

        Raises:
            UserError: the artifact cannot be loaded or run here.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, artifact, threads, batch), daemon=True)
        self._artifact = artifact
        self._process.start()
        theirs.close()
        try:
            self.loaded: Loaded = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, *, warmup: int, calls: int) -> list[float]:
        """Seconds of each of `calls` calls, after `warmup` that are not counted."""
        self._connection.send((warmup, calls))
        seconds: list[float] = self._answer()
        return seconds

    def risen_megabytes(self) -> float:
        """How far the process's resident memory has risen since before it loaded the artifact."""
        self._connection.send(None)
        megabytes: float = self._answer()
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

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(_PATIENCE):
                raise UserError(f"{self._artifact.name} gave no answer within {_PATIENCE:g} s")
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"the process that ran {self._artifact.name} ended") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _serve(connection: Connection, artifact: Path, threads: int, batch: int) -> None:
    import torch

    from iformer.dependencies import require
    from iformer.deploy.artifact import read_record
    from iformer.deploy.export import open_artifact, quiet
    from iformer.deploy.runtimes.registry import find_runtime

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
            runner: Any = open_artifact(artifact, threads=threads)
            shape = (batch, len(info.preprocessing.mean), *info.preprocessing.size)
            fed = runner.prepare(torch.randint(0, 256, shape, dtype=torch.uint8))
            runner.run(fed)
            connection.send(Loaded(seconds=time.perf_counter() - start))
    except UserError as error:
        connection.send(error)
        return
    run = runner.run
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
