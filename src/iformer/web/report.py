"""Reports of a benchmark from a device: checked, compared with this machine's outputs, and turned into rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np

from iformer.bench.timing import Timings
from iformer.config.checking import Config, Length, Range
from iformer.deploy.artifact import artifact_bytes
from iformer.deploy.parity import error_scale
from iformer.errors import UserError, counted, printable
from iformer.web.manifest import PageArtifact

BACKENDS = {
    "wasm": "WebAssembly",
    "webgpu": "WebGPU",
    "litert-wasm": "LiteRT WebAssembly",
    "litert-webgpu": "LiteRT WebGPU",
}
"""Titles of the page's backends, by their names in `engine.js`."""

_Milliseconds = Annotated[float, Range(0, 1e7)]
_Words = Annotated[str, Length(0, 300)]
_MAX_ROUNDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Device(Config):
    """A device's description of itself. The values are checked for type and range, but not verified."""

    browser: _Words
    user_agent: _Words
    system: _Words
    model: _Words
    gpu: _Words
    """Name of the WebGPU adapter; empty without an adapter."""
    gpu_is_software: bool
    """Whether the adapter is emulated on the CPU."""
    threads: Annotated[int, Range(1, 4096)]
    """Number of threads that WebAssembly may use."""
    cores: Annotated[int, Range(1, 4096)] | None
    memory_gb: Annotated[float, Range(0, 1e6)] | None
    """Memory in GB, a lower bound that browsers round and cap; None if unknown."""
    secure_context: bool
    cross_origin_isolated: bool
    screen: _Words

    @property
    def title(self) -> str:
        """The device as text for headings."""
        return ", ".join(part for part in (self.model, self.system, self.browser) if part)


@dataclass(frozen=True, kw_only=True)
class RowKey(Config):
    """Identity of a row: a network, a backend, and the backend's number of threads."""

    artifact: Annotated[int, Range(0, 1000)]
    backend: Literal["wasm", "webgpu", "litert-wasm", "litert-webgpu"]
    threads: Annotated[int, Range(1, 4096)]


@dataclass(frozen=True, kw_only=True)
class _Answers(Config):
    kind: Literal["answers"]
    row: RowKey
    load_ms: _Milliseconds | None = None
    first_ms: _Milliseconds | None = None
    outputs: Annotated[tuple[dict[str, Any], ...], Length(0, 100)] = ()
    error: _Words | None = None


@dataclass(frozen=True, kw_only=True)
class _Samples(Config):
    kind: Literal["samples"]
    row: RowKey
    samples_ms: Annotated[tuple[_Milliseconds, ...], Length(0, _MAX_ROUNDS)]
    error: _Words | None = None


@dataclass(frozen=True, kw_only=True)
class WebRow:
    """Result of one network in one backend of one device: one row of the table."""

    label: str
    backend: str
    """Title of the backend; "(software)" is appended if WebGPU's adapter is emulated on the CPU."""
    threads: int
    runtime: str
    precision: str
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    file_mb: float
    reason: str = ""
    """Reason why the row has no latency; empty if it has one."""
    max_relative_error: float | None = None
    """Largest difference from this machine's outputs, as a share of the output's largest value."""
    same_class: bool | None = None
    """Whether the top class of every reference picture agrees with this machine; None without class logits."""
    load_ms: float | None = None
    first_ms: float | None = None
    """Milliseconds of the first answer, after loading."""
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    rounds: int = 0
    times_as_fast: float | None = None
    """Speed relative to the first network in the same backend: the median over rounds of the ratio."""

    @property
    def where(self) -> str:
        """The backend and, for WebAssembly, its number of threads."""
        return self.backend if "WebGPU" in self.backend else f"{self.backend}, {counted(self.threads, 'thread')}"

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self) | {"size": list(self.size)}


class Collector:
    """Collects the messages of one device and turns them into rows of the table.

    Attributes:
        device: the device's description of itself; None before it has arrived.
        done: event that is set when the device has finished.
        heard: time of the last message, by `time.monotonic`.
    """

    def __init__(
        self,
        artifacts: Sequence[PageArtifact],
        *,
        threads: Sequence[int],
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Prepare a benchmark of `artifacts` with each number in `threads`. `report` receives lines of text."""
        self.device: Device | None = None
        self.done = threading.Event()
        self.heard = time.monotonic()
        self._artifacts = artifacts
        self._threads = {1, *threads}
        self._report = report
        self._rows: dict[RowKey, WebRow] = {}
        self._samples: dict[RowKey, tuple[float, ...]] = {}

    def receive(self, message: Any) -> str | None:
        """Process one message. Return None, or an error message if the message is invalid or comes too late."""
        if self.done.is_set():
            return "the benchmark is over"
        try:
            self._take(message)
        except UserError as error:
            return printable(str(error), limit=200)
        self.heard = time.monotonic()
        return None

    def rows(self) -> list[WebRow]:
        """Return the rows so far. Rows with wrong answers or without samples have no latency."""
        rows = []
        for key, row in self._rows.items():
            samples = self._samples.get(key, ())
            if row.reason:
                rows.append(row)
            elif not samples:
                rows.append(replace(row, reason="the page ended before the benchmark did"))
            else:
                figures = Timings(seconds={"row": tuple(value / 1e3 for value in samples)}).to_plain()["row"]
                figures["rounds"] = int(figures["rounds"])
                rows.append(replace(row, **figures, times_as_fast=self._speed(key)))  # type: ignore[arg-type]
        return rows

    def _take(self, message: Any) -> None:
        kind = message.get("kind") if isinstance(message, dict) else None
        if kind == "alive":
            return
        if kind == "device":
            if self.device is not None:
                raise UserError("another device has begun")
            self.device = Device.from_plain(message.get("device"))
            self._report(f"measuring on {printable(self.device.title, limit=200)}")
        elif self.device is None:
            raise UserError("expected the device first")
        elif kind == "answers":
            self._take_answers(_Answers.from_plain(message))
        elif kind == "samples":
            self._take_samples(_Samples.from_plain(message))
        elif kind == "done":
            self.done.set()
        else:
            raise UserError("kind is unknown")

    def _take_answers(self, answers: _Answers) -> None:
        key = answers.row
        artifact = self._artifact_of(key)
        if key in self._rows:
            raise UserError("the row exists")
        row = self._new_row(key, artifact)
        if answers.error is not None:
            row = replace(row, reason=_failure(answers.error))
        else:
            error, same = compare_outputs(artifact, answers.outputs)
            row = replace(
                row,
                max_relative_error=error,
                same_class=same,
                load_ms=answers.load_ms,
                first_ms=answers.first_ms,
                reason=_judged(artifact, error, same),
            )
        self._rows[key] = row
        words = row.reason or f"answers as here, within {row.max_relative_error:.1g}"
        self._report(f"{row.label}, {row.where}: {words}")

    def _take_samples(self, samples: _Samples) -> None:
        if samples.row not in self._rows or samples.row in self._samples:
            raise UserError("the row is not expected")
        self._samples[samples.row] = samples.samples_ms
        if samples.error is not None and not self._rows[samples.row].reason:
            self._rows[samples.row] = replace(self._rows[samples.row], reason=_failure(samples.error))

    def _artifact_of(self, key: RowKey) -> PageArtifact:
        if key.artifact >= len(self._artifacts) or key.threads not in self._threads:
            raise UserError("the row is not part of the benchmark")
        artifact = self._artifacts[key.artifact]
        if artifact.info.runtime != ("litert" if key.backend.startswith("litert") else "onnx"):
            raise UserError("the backend does not run this artifact")
        return artifact

    def _new_row(self, key: RowKey, artifact: PageArtifact) -> WebRow:
        assert self.device is not None
        software = key.backend.endswith("webgpu") and self.device.gpu_is_software
        return WebRow(
            label=artifact.label,
            backend=BACKENDS[key.backend] + (" (software)" if software else ""),
            threads=key.threads,
            runtime=artifact.info.runtime,
            precision=artifact.info.precision,
            size=artifact.info.preprocessing.size,
            file_mb=artifact_bytes(artifact.path) / 1e6,
        )

    def _speed(self, key: RowKey) -> float | None:
        for first, row in self._rows.items():
            if (first.backend, first.threads) == (key.backend, key.threads):
                slow, fast = self._samples.get(first, ()), self._samples[key]
                if row.reason or len(slow) != len(fast) or not all(fast):
                    return None
                return Timings(seconds={"first": slow, "this": fast}).ratio("first", "this")
        return None


def compare_outputs(artifact: PageArtifact, found: Sequence[dict[str, Any]]) -> tuple[float, bool | None]:
    """Compare the outputs of a device with the outputs of this machine.

    Returns:
        The largest difference as a share of the output's largest value, and whether the top classes agree (None
        without class logits).

    Raises:
        UserError: the number of outputs or values differs from the expected one, or a value is not finite.
    """
    if len(found) != len(artifact.outputs):
        raise UserError("outputs of each reference picture are needed")
    largest, same = 0.0, None
    for outputs, actual in zip(artifact.outputs, found, strict=True):
        expected = artifact.sampled(outputs)
        if actual.keys() != expected.keys():
            raise UserError("the outputs have other names")
        for name, tensor in expected.items():
            wanted = tensor.flatten().double().numpy()
            values = _numbers(actual[name], len(wanted))
            scale = error_scale(name, float(np.abs(wanted).max()))
            largest = max(largest, float(np.abs(values - wanted).max()) / scale)
            if name == "logits" and artifact.info.task == "classify":
                same = same is not False and bool(values.argmax() == wanted.argmax())
    return largest, same


def _numbers(values: Any, count: int) -> np.ndarray:
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"expected {count} values")
    if not all(type(value) in (int, float) and abs(value) < 1e30 for value in values):
        raise UserError("expected finite numbers")
    return np.array(values, dtype=np.float64)


def _judged(artifact: PageArtifact, error: float, same: bool | None) -> str:
    if same is False:
        return "wrong: another first class on a reference picture"
    if artifact.tolerance is not None and error > artifact.tolerance:
        return f"wrong: differs by {error:.2g} of the largest value; {artifact.tolerance:g} is allowed"
    return ""


def _failure(text: str) -> str:
    """Return a device's message about a failure, or a default text if the message is empty."""
    return printable(text, limit=200) or "failed without a message"
