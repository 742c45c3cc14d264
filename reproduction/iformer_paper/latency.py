"""Measure the paper's networks on this machine: folded, ONNX Runtime, one thread, one image."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iformer.bench.timing import Timings, interleaved
from iformer.config.network import NetworkConfig
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import runtime_module
from iformer.deploy.runtimes.registry import find_runtime
from iformer.models.factory import build
from iformer.tasks.export import exportable
from iformer_paper.ablations import ABLATIONS
from iformer_paper.tables import PaperTable

HOW = "folded, ONNX Runtime, one thread, one image at 224, random weights; median of interleaved rounds"
"""Description of the measurement for notes below tables and figures."""

_RUNTIME = "onnx"
_AT_224 = frozenset({1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 18})
"""Numbers of the tables whose networks take images of 224 x 224 pixels."""


def measure_latencies(networks: Mapping[Any, NetworkConfig], *, size: int = 224, rounds: int = 30) -> Timings:
    """Time networks with random weights in interleaved rounds.

    Args:
        networks: configs by name; each network is exported and checked as by `iformer export --raw`.
        size: side of the square input, in pixels.
        rounds: number of timed calls of each network.

    Returns:
        Seconds per call, by `str(name)`.

    Raises:
        MissingDependencyError: ONNX Runtime or its converter is not installed.
    """
    runtime = find_runtime(_RUNTIME)
    runtime.require()
    with tempfile.TemporaryDirectory(prefix="iformer-latency-") as folder:
        calls: dict[str, Callable[[], Any]] = {}
        for number, (name, network) in enumerate(networks.items()):
            torch.manual_seed(0)
            model: Any = build(network).eval()
            path = Path(folder) / f"{number}{runtime.suffix}"
            export_artifact(exportable(model), path, _RUNTIME, size=(size, size), batch=1, raw=True)
            runner: Any = runtime_module(runtime.name).RUNNER(path, threads=1)
            image = torch.randint(0, 256, (1, network.in_chans, size, size), dtype=torch.uint8)
            calls[str(name)] = partial(runner.run, runner.prepare(image))
        return interleaved(calls, rounds=rounds, warmup=5)


def with_latencies(table: PaperTable, *, rounds: int = 30) -> PaperTable:
    """Return a table with latencies measured on this machine and a note on how they were measured.

    A table without networks at 224 pixels is returned unchanged.

    Raises:
        MissingDependencyError: ONNX Runtime or its converter is not installed.
    """
    networks = ABLATIONS.get(table.number, {}) if table.number in _AT_224 else {}
    if not networks:
        return table
    timings = measure_latencies(networks, rounds=rounds)
    sections = tuple(
        replace(
            section,
            rows=tuple(
                replace(row, measured_ms=1e3 * timings.median(row.name)) if row.network is not None else row
                for row in section.rows
            ),
        )
        for section in table.sections
    )
    return replace(table, sections=sections, notes=(*table.notes, f"ms here: {HOW}"))
