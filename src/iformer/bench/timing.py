"""Time several things against each other, fairly: interleaved in one process, told as ratios."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of each call, by name; all names have one sample a round, in the order of the rounds."""

    seconds: dict[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Median seconds of one call."""
        return statistics.median(self.seconds[name])

    def percentile(self, name: str, percent: float) -> float:
        """The sample below which `percent` of the samples lie (nearest rank)."""
        samples = sorted(self.seconds[name])
        return samples[min(len(samples) - 1, max(0, round(percent / 100 * (len(samples) - 1))))]

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as fast `fast` is as `slow`: the median over rounds of their ratios.

        Both were timed within one round, so that a machine that slows down for a while slows both.
        """
        return statistics.median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def to_plain(self) -> dict[str, dict[str, float]]:
        """Milliseconds for JSON: median, p10 and p90 of each name, and how many rounds."""
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
    """Call everything once a round, in an order drawn anew each round, so that drift hits all alike.

    Args:
        callables: what to time, by name; each call is one sample.
        rounds: samples of each name, 1 or more.
        warmup: calls of each before the first sample.
        synchronize: waits until the device has finished (`torch.cuda.synchronize`), None on a CPU.

    Raises:
        ValueError: no rounds or nothing to call.
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
