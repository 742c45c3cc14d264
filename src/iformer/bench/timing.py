"""Interleaved timing of several functions in one process, with speeds compared as ratios."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Samples in seconds by name: one sample per round and name, in the order of the rounds."""

    seconds: dict[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Return the median of the samples in seconds."""
        return statistics.median(self.seconds[name])

    def percentile(self, name: str, percent: float) -> float:
        """Return a percentile (0 to 100, nearest rank) of the samples in seconds."""
        samples = sorted(self.seconds[name])
        return samples[min(len(samples) - 1, max(0, round(percent / 100 * (len(samples) - 1))))]

    def ratio(self, slow: str, fast: str) -> float:
        """Return the speed of `fast` relative to `slow`: the median over rounds of slow time / fast time.

        Both are timed in every round, so a temporary slow-down of the machine affects both.
        """
        return statistics.median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def to_plain(self) -> dict[str, dict[str, float]]:
        """Return median, p10 and p90 in milliseconds, and the number of rounds, as `{name: values}` for JSON."""
        return {
            name: {
                "median_ms": 1e3 * self.median(name),
                "p10_ms": 1e3 * self.percentile(name, 10),
                "p90_ms": 1e3 * self.percentile(name, 90),
                "rounds": len(samples),
            }
            for name, samples in self.seconds.items()
        }


def interleaved(
    callables: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 3,
    synchronize: Callable[[], Any] | None = None,
) -> Timings:
    """Time every function once per round, in random order, so that drift affects all functions alike.

    Args:
        callables: functions by name; each call is one sample.
        rounds: number of samples per name, 1 or more.
        warmup: number of calls of each function before the first sample.
        synchronize: function that waits for the device, such as `torch.cuda.synchronize`; None for a CPU.

    Raises:
        ValueError: there are no rounds or no functions.
    """
    if rounds < 1 or not callables:
        raise ValueError(f"interleaved needs something to call and 1 round or more; got {rounds} rounds")
    wait = synchronize or (lambda: None)
    for call in callables.values():
        for _ in range(warmup):
            call()
    wait()
    order = list(callables)
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            callables[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds={name: tuple(samples) for name, samples in seconds.items()})
