"""Latency of many artifacts of one runtime on this machine: interleaved rounds in processes of their own."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from iformer.bench.subjects import MATRIX_PRODUCT, Subject
from iformer.bench.timing import Timings
from iformer.bench.worker import Worker
from iformer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One row of the table."""

    label: str
    runtime: str
    precision: str
    size: tuple[int, int]
    batch: int
    """Images in one call."""
    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    times_as_fast: float
    """As the first row: the median over rounds of the ratio."""
    load_ms: float
    """From the file to the first answer."""
    memory_mb: float
    """Rise of the process's resident memory by loading and running."""
    file_mb: float
    gmacs: float | None
    gflops: float | None
    """10^9 operations a second, two for each multiply-accumulate, at the median."""
    matrix_product_share: float | None
    """That as a share of what the same runtime reaches on a matrix product in the same run."""

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"size": list(self.size)}


def measure(
    subjects: Sequence[Subject],
    *,
    rounds: int = 20,
    calls: int = 5,
    warmup: int = 2,
    threads: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> list[Latency]:
    """Time artifacts of one runtime against each other.

    In a round each has one turn, in an order drawn anew: calls that are not counted, then `calls` of which the
    median is the round's sample. A machine that slows down for a while so slows all of them.

    Args:
        subjects: artifacts; labels have to differ.
        rounds: samples of each.
        calls: counted calls of a turn.
        warmup: calls before them.
        threads: of the runtime.
        report: told a line after loading and after each tenth of the rounds.

    Raises:
        UserError: there is nothing to time, a number is below 1, or an artifact cannot be run here.
    """
    if not subjects or rounds < 1 or calls < 1 or threads < 1 or warmup < 0:
        raise UserError("a benchmark needs something to time, and 1 round, call and thread or more")
    if len({subject.label for subject in subjects}) != len(subjects):
        raise UserError("a benchmark's labels have to differ; the same network is named twice")
    with ExitStack() as stack:
        workers = {}
        for subject in subjects:
            workers[subject.label] = stack.enter_context(
                Worker(subject.artifact, threads=threads, batch=subject.batch)
            )
            report(f"{subject.label} loaded")
        samples: dict[str, list[float]] = {label: [] for label in workers}
        order, shuffle = list(workers), random.Random(0).shuffle
        for done in range(1, rounds + 1):
            shuffle(order)
            for label in order:
                samples[label].append(statistics.median(workers[label].turn(warmup=warmup, calls=calls)))
            if done % max(1, rounds // 10) == 0:
                report(f"round {done} of {rounds}")
        memory = {label: worker.risen_megabytes() for label, worker in workers.items()}
        loaded = {label: worker.loaded.seconds for label, worker in workers.items()}
    timings = Timings(seconds={label: tuple(seconds) for label, seconds in samples.items()})
    rate = _rate(next((subject for subject in subjects if subject.label == MATRIX_PRODUCT), None), timings)
    return [
        _latency(subject, timings, subjects[0].label, loaded[subject.label], memory[subject.label], rate)
        for subject in subjects
    ]


def _rate(subject: Subject | None, timings: Timings) -> float | None:
    if subject is None or subject.gmacs is None:
        return None
    return 2 * subject.batch * subject.gmacs / timings.median(subject.label)


def _latency(
    subject: Subject, timings: Timings, first: str, loaded: float, memory: float, product_rate: float | None
) -> Latency:
    rate = _rate(subject, timings)
    plain = timings.to_plain()[subject.label]
    return Latency(
        label=subject.label,
        runtime=subject.runtime,
        precision=subject.precision,
        size=subject.size,
        batch=subject.batch,
        median_ms=plain["median_ms"],
        p10_ms=plain["p10_ms"],
        p90_ms=plain["p90_ms"],
        rounds=int(plain["rounds"]),
        times_as_fast=timings.ratio(first, subject.label),
        load_ms=1e3 * loaded,
        memory_mb=memory,
        file_mb=subject.megabytes,
        gmacs=subject.gmacs,
        gflops=rate,
        matrix_product_share=None if rate is None or product_rate is None else rate / product_rate,
    )
