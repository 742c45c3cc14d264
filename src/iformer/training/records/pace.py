"""Estimate from a run's first steps on a CPU how long the run takes, and whether other processes slow it down."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

STEPS = 4
"""Number of measured steps. The first step is not measured: it also starts workers and prepares kernels."""
LONG = 60.0
"""Shortest remaining time, in seconds, for which the lines about duration and a busy CPU are printed."""
BUSY = 0.25
"""Share of time spent waiting for a core, 0 to 1, from which the CPU counts as busy with other processes."""
_ENOUGH = 0.2
"""Smallest CPU time of the measured steps, in seconds, from which the share of waiting is computed."""


class Pace:
    """Measurement of the first steps of a run; see `step`."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        core_times: Callable[[], tuple[float, float] | None] | None = None,
    ) -> None:
        self._clock, self._core_times = clock, core_times or read_core_times
        self._steps = 0

    def step(self, done: int, total: int) -> list[str]:
        """Return the lines to print after a step; empty except after the last measured step.

        Args:
            done: work done so far, in a unit that is proportional to time.
            total: work of the whole run, in the same unit.
        """
        self._steps += 1
        if self._steps == 1:
            self._began, self._done, self._cores = self._clock(), done, self._core_times()
        if self._steps != 1 + STEPS:
            return []
        seconds = (self._clock() - self._began) / (done - self._done) * (total - done)
        if seconds < LONG:
            return []
        lines = [
            f"about {format_seconds(seconds)} left at the pace of the first steps, without evaluations; "
            "Ctrl-C stops, --resume continues"
        ]
        waited = self._waited()
        if waited is not None and waited >= BUSY:
            lines.append(
                "note: the CPU is busy with other processes: this one waited for a free core "
                f"{100 * waited:.0f} % of its time, which slows down training by much more than that; stop them, "
                "or train with fewer threads (OMP_NUM_THREADS)"
            )
        return lines

    def _waited(self) -> float | None:
        """Return the share of runnable time that this process's threads waited for a core; None if unknown."""
        now = self._core_times()
        if now is None or self._cores is None:
            return None
        ran, waited = (after - before for after, before in zip(now, self._cores, strict=True))
        return waited / (ran + waited) if ran >= _ENOUGH else None


def read_core_times() -> tuple[float, float] | None:
    """Return the seconds that this process's threads have run, and have waited for a core; None if unknown."""
    ran = waited = 0
    try:
        for thread in os.listdir("/proc/self/task"):
            fields = Path("/proc/self/task", thread, "schedstat").read_text(encoding="ascii").split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    except (OSError, ValueError, IndexError):  # another system, or a thread that has just ended
        return None
    return ran / 1e9, waited / 1e9


def format_seconds(seconds: float) -> str:
    """Return a duration as text, such as `9 s`, `3 min 20 s` or `2 h 05 min`; fractions are rounded up."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
