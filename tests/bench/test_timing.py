"""Interleaved timing."""

from __future__ import annotations

import time

import pytest

from iformer.bench.timing import Timings, interleaved


def test_every_name_is_called_once_a_round_and_warmed_up() -> None:
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=10, warmup=2)
    assert calls[:4] == ["a", "a", "b", "b"]
    rounds = [set(calls[4 + 2 * i : 6 + 2 * i]) for i in range(10)]
    assert rounds == [{"a", "b"}] * 10
    assert len({tuple(calls[4 + 2 * i : 6 + 2 * i]) for i in range(10)}) == 2, "the order never changes"
    assert {len(samples) for samples in timings.seconds.values()} == {10}


def test_the_slower_one_is_slower() -> None:
    timings = interleaved(
        {"slow": lambda: time.sleep(0.006), "fast": lambda: time.sleep(0.002)}, rounds=5, warmup=0
    )
    assert timings.ratio("slow", "fast") > 1.5
    assert timings.median("slow") > timings.median("fast")


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # the machine was ten times as slow in the second round, for both
    timings = Timings(seconds={"a": (2.0, 20.0, 2.0), "b": (1.0, 10.0, 1.0)})
    assert timings.ratio("a", "b") == 2.0
    assert timings.median("a") == 2.0
    assert timings.percentile("a", 90) == 20.0
    assert timings.to_plain()["b"] == {"median_ms": 1e3, "p10_ms": 1e3, "p90_ms": 1e4, "rounds": 3}


def test_nothing_to_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 round or more"):
        interleaved({"a": lambda: None}, rounds=0)
    with pytest.raises(ValueError, match="something to call"):
        interleaved({}, rounds=3)
