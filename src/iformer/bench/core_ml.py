"""Latency of Core ML artifacts on a Mac or a connected iPhone, and the processing unit of each operation.

Timing needs macOS and `coremltools.models.ml_program.experimental` (8.3 and later). An iPhone also needs Xcode,
developer mode, and a development team that signs coremltools' runner app.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from iformer.bench.latency import NEURAL_ENGINE, Latency, check_labels, rows
from iformer.bench.subjects import BenchSubject
from iformer.bench.timing import Timings
from iformer.dependencies import require
from iformer.deploy.artifact import read_record
from iformer.errors import UserError

_EXPERIMENTAL = "coremltools.models.ml_program.experimental"

_UNITS = {"NeuralEngine": NEURAL_ENGINE, "GPU": "GPU", "CPU": "CPU"}
"""Names of the processing units, by a part of the name of coremltools' class for the unit."""


def require_mac() -> None:
    """Raise `UserError` if this machine is not a Mac."""
    if sys.platform != "darwin":
        raise UserError("Core ML is timed on macOS only")


def measure_core_ml(
    subjects: Sequence[BenchSubject],
    *,
    iphone: str | None = None,
    team: str | None = None,
    rounds: int = 20,
    calls: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> list[Latency]:
    """Time Core ML artifacts in turns on this Mac or on an iPhone; Core ML chooses the processing units.

    Args:
        subjects: Core ML artifacts with normalised float input (`--raw`), because coremltools sends no images.
        iphone: name of a connected iPhone, or "any"; None means this Mac.
        team: identifier of the Apple developer team that signs the runner app; required for an iPhone.
        rounds: number of samples per artifact, each the median of `calls` calls after one warm-up call.
        calls: number of timed calls per sample.
        report: called with a line of text after each artifact is loaded.

    Raises:
        MissingDependencyError: coremltools is not installed.
        UserError: this is not a Mac, the iPhone is not connected or has no `team`, an artifact takes images, or
            two subjects have the same label.
    """
    require_mac()
    check_labels(subjects)
    for subject in subjects:
        if read_record(subject.artifact).normalized_by != "caller":
            raise UserError(f"{subject.label} takes images, which coremltools cannot send; export it with --raw")
    return asyncio.run(_measure(subjects, iphone, team, rounds, calls, report))


async def _measure(
    subjects: Sequence[BenchSubject],
    iphone: str | None,
    team: str | None,
    rounds: int,
    calls: int,
    report: Callable[[str], None],
) -> list[Latency]:
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
    units = {}
    for label, worker in workers.items():
        operations = await worker.benchmark_operation_execution(inputs=fed[label], iterations=1)
        units[label] = _units(operations)
    return rows(subjects, timings, device=where, load_ms=load_ms, units=units)


def _find_iphone(name: str) -> Any:
    remote = require(f"{_EXPERIMENTAL}.remote_device", extra="coreml")
    phones = remote.Device.get_connected_devices(remote.DeviceType.IPHONE)
    matching = [phone for phone in phones if name in ("any", phone.name)]
    if not matching:
        connected = ", ".join(phone.name for phone in phones) or "none; connect one and turn on its developer mode"
        raise UserError(f"no iPhone named '{name}' is connected; connected are: {connected}")
    return matching[0]


async def _prepared(phone: Any, team: str | None) -> Any:
    """Let Xcode build and sign coremltools' runner app, and install the app on the phone."""
    if not team:
        raise UserError("an iPhone runs signed apps only; give the identifier of your developer team by --team")
    remote = require(f"{_EXPERIMENTAL}.remote_device", extra="coreml")
    credentials = remote.AppSigningCredentials(development_team=team)
    return await phone.prepare_for_model_debugging(credentials=credentials)


def _units(operations: Sequence[Any]) -> dict[str, dict[str, int]]:
    """Return how many operations of each kind Core ML plans to run on each unit; constants are not counted."""
    found: dict[str, Counter[str]] = {}
    for operation in operations:
        usage = operation.compute_device_usage
        if usage is None:
            continue
        kind = type(usage.preferred_compute_device).__name__
        unit = next((name for part, name in _UNITS.items() if part in kind), kind)
        # remove the version from names such as "ios16.conv"
        found.setdefault(unit, Counter())[operation.spec.type.rpartition(".")[2]] += 1
    return {unit: dict(kinds.most_common()) for unit, kinds in found.items()}
