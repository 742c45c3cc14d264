"""Latency of artifacts of one runtime on this machine: interleaved rounds, one process per artifact."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from iformer.bench.energy import EnergyMeter
from iformer.bench.subjects import MATRIX_PRODUCT, BenchSubject
from iformer.bench.timing import Timings
from iformer.bench.worker import Worker
from iformer.errors import UserError

NEURAL_ENGINE = "Neural Engine"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one artifact on one device: one row of the table."""

    label: str
    runtime: str
    device: str
    """Name of the device, such as "this machine"."""
    precision: str
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    batch: int
    """Number of images per call."""
    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    times_as_fast: float
    """Speed relative to the first row: the median over rounds of the ratio of the two latencies."""
    load_ms: float
    """Load time in milliseconds, including the first answer except for Core ML."""
    memory_mb: float | None = None
    """Increase of the process's resident memory by loading and running, in MB; None if not measured."""
    file_mb: float
    gmacs: float | None
    """Multiply-accumulate operations per image, in billions; None if unknown."""
    gflops: float | None
    """Operations per second at the median latency, in billions, two for each multiply-accumulate; None if unknown
    or if the time includes postprocessing."""
    postprocess: bool = False
    """Whether the time includes the postprocessing of a detector or segmenter."""
    matrix_product_share: float | None = None
    """`gflops` divided by the rate of a matrix product in the same runtime and run; None if not measured."""
    energy_mj: float | None = None
    """Energy of the processor per image in millijoules, including idle cores: the median over rounds. None if not
    measured."""
    energy_p10_mj: float | None = None
    energy_p90_mj: float | None = None
    units: dict[str, dict[str, int]] = field(default_factory=dict)
    """Core ML only: number of operations by processing unit and kind: `{"Neural Engine": {"conv": 58}}`."""

    @property
    def elsewhere(self) -> dict[str, int]:
        """Number of operations that do not run on the Neural Engine, by kind."""
        found: Counter[str] = Counter()
        for unit, kinds in self.units.items():
            if unit != NEURAL_ENGINE:
                found.update(kinds)
        return dict(found)

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON; `units` and `elsewhere` only if the units are known."""
        plain = asdict(self) | {"size": list(self.size)}
        if not plain.pop("units"):
            return plain
        return plain | {"units": self.units, "elsewhere": self.elsewhere}


def measure(
    subjects: Sequence[BenchSubject],
    *,
    rounds: int = 20,
    calls: int = 5,
    warmup: int = 2,
    threads: int = 1,
    meter: EnergyMeter | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Latency]:
    """Time artifacts of one runtime against each other.

    In each round every artifact has one turn, in random order: warm-up calls, then `calls` timed calls, whose
    median is one sample. A temporary slow-down of the machine therefore affects all artifacts alike.

    Args:
        subjects: artifacts with different labels.
        rounds: number of samples per artifact.
        calls: number of timed calls per turn.
        warmup: number of warm-up calls per turn.
        threads: number of threads of the runtime.
        meter: measures the energy of every turn, including warm-up calls. None: energy is not measured.
        report: called with a line of text after loading and after each tenth of the rounds.

    Raises:
        UserError: there is nothing to time, two subjects have the same label, a number is too small, or an
            artifact cannot run on this machine.
    """
    if not subjects or rounds < 1 or calls < 1 or threads < 1 or warmup < 0:
        raise UserError("a benchmark needs something to time, and 1 round, call and thread or more")
    check_labels(subjects)
    with ExitStack() as stack:
        workers = {}
        for subject in subjects:
            workers[subject.label] = stack.enter_context(
                Worker(subject.artifact, threads=threads, batch=subject.batch, postprocess=subject.postprocess)
            )
            report(f"{subject.label} loaded")
        samples: dict[str, list[float]] = {label: [] for label in workers}
        joules: dict[str, list[float]] = {label: [] for label in workers}
        images = {subject.label: (warmup + calls) * subject.batch for subject in subjects}
        order, shuffle = list(workers), random.Random(0).shuffle
        for done in range(1, rounds + 1):
            shuffle(order)
            for label in order:
                before = 0.0 if meter is None else meter.joules()
                samples[label].append(statistics.median(workers[label].turn(warmup=warmup, calls=calls)))
                if meter is not None:
                    joules[label].append((meter.joules() - before) / images[label])
            if done % max(1, rounds // 10) == 0:
                report(f"round {done} of {rounds}")
        memory_mb = {label: worker.memory_mb() for label, worker in workers.items()}
        load_ms = {label: 1e3 * worker.load_seconds for label, worker in workers.items()}
    timings = Timings(seconds={label: tuple(seconds) for label, seconds in samples.items()})
    found = rows(subjects, timings, device="this machine", load_ms=load_ms, memory_mb=memory_mb)
    if meter is None:
        return found
    # convert joules to millijoules
    energy = Timings(seconds={label: tuple(values) for label, values in joules.items()}).to_plain()
    return [
        replace(
            row,
            energy_mj=energy[row.label]["median_ms"],
            energy_p10_mj=energy[row.label]["p10_ms"],
            energy_p90_mj=energy[row.label]["p90_ms"],
        )
        for row in found
    ]


def check_labels(subjects: Sequence[BenchSubject]) -> None:
    """Raise `UserError` if two subjects have the same label."""
    if len({subject.label for subject in subjects}) != len(subjects):
        raise UserError("two of the benchmarked networks have the same name; name each network once")


def rows(
    subjects: Sequence[BenchSubject],
    timings: Timings,
    *,
    device: str,
    load_ms: dict[str, float],
    memory_mb: dict[str, float] | None = None,
    units: dict[str, dict[str, dict[str, int]]] | None = None,
) -> list[Latency]:
    """Return one row per subject; `load_ms`, `memory_mb` and `units` have the labels as keys."""
    plain = timings.to_plain()
    gflops = {
        subject.label: 2 * subject.batch * subject.gmacs / timings.median(subject.label)
        for subject in subjects
        if subject.gmacs is not None and not subject.postprocess
    }
    peak = gflops.get(MATRIX_PRODUCT)
    return [
        Latency(
            label=subject.label,
            runtime=subject.runtime,
            device=device,
            precision=subject.precision,
            size=subject.size,
            batch=subject.batch,
            median_ms=plain[subject.label]["median_ms"],
            p10_ms=plain[subject.label]["p10_ms"],
            p90_ms=plain[subject.label]["p90_ms"],
            rounds=int(plain[subject.label]["rounds"]),
            times_as_fast=timings.ratio(subjects[0].label, subject.label),
            load_ms=load_ms[subject.label],
            memory_mb=None if memory_mb is None else memory_mb[subject.label],
            file_mb=subject.file_mb,
            gmacs=subject.gmacs,
            gflops=gflops.get(subject.label),
            postprocess=subject.postprocess,
            matrix_product_share=gflops[subject.label] / peak if peak and subject.label in gflops else None,
            units=(units or {}).get(subject.label, {}),
        )
        for subject in subjects
    ]
