"""Core ML through coremltools' own tools: times on a Mac or a connected iPhone, and the unit of each operation.

They are in `coremltools.models.ml_program.experimental` (8.3 and later) and run on macOS only; the iPhone needs
Xcode, developer mode, and a development team that signs coremltools' small runner app.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iformer.bench.subjects import Subject
from iformer.bench.timing import Timings
from iformer.dependencies import require
from iformer.deploy.artifact import read_record
from iformer.errors import UserError

_EXPERIMENTAL = "coremltools.models.ml_program.experimental"

_UNITS = {"NeuralEngine": "Neural Engine", "GPU": "GPU", "CPU": "CPU"}
"""A part of the name of coremltools' class for a device, and what people call it."""


@dataclass(frozen=True, kw_only=True)
class CoreMLReport:
    """One artifact on one device."""

    label: str
    device: str
    """The phone's name and system; "this Mac"."""
    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    times_as_fast: float
    """As the first one: the median over rounds of the ratio."""
    load_ms: float
    units: dict[str, dict[str, int]]
    """Unit to the operations that Core ML's plan puts there, by kind: {"Neural Engine": {"conv": 58}}."""

    @property
    def elsewhere(self) -> dict[str, int]:
        """Operations that do not run on the Neural Engine, by kind."""
        found: Counter[str] = Counter()
        for unit, kinds in self.units.items():
            if unit != _UNITS["NeuralEngine"]:
                found.update(kinds)
        return dict(found)

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"elsewhere": self.elsewhere}


def require_mac() -> None:
    """Raise `UserError` where Core ML does not run."""
    if sys.platform != "darwin":
        raise UserError("Core ML is timed on macOS only")


def measure_core_ml(
    subjects: Sequence[Subject],
    *,
    iphone: str | None = None,
    team: str | None = None,
    rounds: int = 20,
    calls: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> list[CoreMLReport]:
    """Time Core ML artifacts in turns on this Mac or on an iPhone, with Core ML's own choice of units.

    Args:
        subjects: artifacts of Core ML with a normalised float input (`--raw`); coremltools sends no images.
        iphone: the name of a connected iPhone, or "any"; None: this Mac.
        team: the identifier of the Apple developer team that signs the runner app; iPhones need it.
        rounds: samples of each, the median of `calls` calls after one that does not count.
        calls: counted calls of a turn.
        report: told a line after each artifact is loaded.

    Raises:
        MissingDependencyError: coremltools is not installed.
        UserError: this is no Mac, the iPhone is not there, or an artifact takes images.
    """
    require_mac()
    for subject in subjects:
        if read_record(subject.artifact).normalized_by != "caller":
            raise UserError(f"{subject.label} takes images, which coremltools cannot send; export it with --raw")
    return asyncio.run(_measure(subjects, iphone, team, rounds, calls, report))


async def _measure(
    subjects: Sequence[Subject],
    iphone: str | None,
    team: str | None,
    rounds: int,
    calls: int,
    report: Callable[[str], None],
) -> list[CoreMLReport]:
    coremltools = require("coremltools", extra="coreml")
    perf_utils = require(f"{_EXPERIMENTAL}.perf_utils", extra="coreml")
    device = None if iphone is None else await _prepared(_find_iphone(iphone), team)
    where = "this Mac" if device is None else f"{device.name} (iOS {device.os_version})"
    workers: dict[str, Any] = {}
    load_ms, fed = {}, {}
    for subject in subjects:
        model = coremltools.models.MLModel(str(subject.artifact), skip_model_load=True)
        workers[subject.label] = perf_utils.MLModelBenchmarker(model, device)
        (load_ms[subject.label],) = (await workers[subject.label].benchmark_load(iterations=1)).samples
        record = read_record(subject.artifact)
        shape = (subject.batch, len(record.preprocessing.mean), *subject.size)
        fed[subject.label] = {record.input_name: np.zeros(shape, np.float32)}
        report(f"{subject.label} loaded on {where}")
    seconds: dict[str, list[float]] = {label: [] for label in workers}
    order, shuffle = list(workers), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for label in order:
            found = await workers[label].benchmark_predict(inputs=fed[label], iterations=calls, warmup=True)
            seconds[label].append(statistics.median(found.samples) / 1e3)
    timings = Timings(seconds={label: tuple(samples) for label, samples in seconds.items()})
    plain = timings.to_plain()
    return [
        CoreMLReport(
            label=label,
            device=where,
            median_ms=plain[label]["median_ms"],
            p10_ms=plain[label]["p10_ms"],
            p90_ms=plain[label]["p90_ms"],
            rounds=rounds,
            times_as_fast=timings.ratio(subjects[0].label, label),
            load_ms=load_ms[label],
            units=_units(await worker.benchmark_operation_execution(inputs=fed[label], iterations=1)),
        )
        for label, worker in workers.items()
    ]


def _find_iphone(name: str) -> Any:
    remote = require(f"{_EXPERIMENTAL}.remote_device", extra="coreml")
    phones = remote.Device.get_connected_devices(remote.DeviceType.IPHONE)
    fitting = [phone for phone in phones if name in ("any", phone.name)]
    if not fitting:
        there = ", ".join(phone.name for phone in phones) or "none; connect one and switch its developer mode on"
        raise UserError(f"no iPhone named '{name}' is connected; connected are: {there}")
    return fitting[0]


async def _prepared(phone: Any, team: str | None) -> Any:
    """The phone with coremltools' runner app on it, which is built and signed by Xcode."""
    if not team:
        raise UserError("an iPhone runs signed apps only; give the identifier of your developer team by --team")
    remote = require(f"{_EXPERIMENTAL}.remote_device", extra="coreml")
    credentials = remote.AppSigningCredentials(development_team=team)
    return await phone.prepare_for_model_debugging(credentials=credentials)


def _units(operations: Sequence[Any]) -> dict[str, dict[str, int]]:
    """How many operations of each kind the plan puts on each unit; constants are on none."""
    found: dict[str, Counter[str]] = {}
    for operation in operations:
        usage = operation.compute_device_usage
        if usage is None:
            continue
        kind = type(usage.preferred_compute_device).__name__
        unit = next((name for part, name in _UNITS.items() if part in kind), kind)
        # "ios16.conv": the version of the definition says nothing to a reader
        found.setdefault(unit, Counter())[operation.spec.type.rpartition(".")[2]] += 1
    return {unit: dict(kinds.most_common()) for unit, kinds in found.items()}
