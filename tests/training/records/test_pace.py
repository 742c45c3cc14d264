"""Lines about the duration of a run on a CPU, from its first steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from iformer.training.loop import train
from iformer.training.records import pace
from iformer.training.records.pace import Pace, read_core_times
from tiny.classification import tiny_job, tiny_recipe


def said(step_seconds: float, *, waiting: float | None, total: int = 1000) -> list[str]:
    """Lines over six steps of 10 units of work each, which wait `waiting` seconds for a core."""
    now = 0.0
    measured = Pace(
        clock=lambda: now,
        core_times=lambda: None if waiting is None else (now, now * waiting / step_seconds),
    )
    lines = []
    for step in range(1, 7):
        now = 100 + step * step_seconds  # the first step takes 100 seconds
        lines += measured.step(10 * step, total)
    return lines


def test_the_duration_is_that_of_the_steps_after_the_first() -> None:
    (line,) = said(10, waiting=0)
    assert line.startswith("about 15 min 50 s left at the pace of the first steps")  # 95 steps
    assert said(10, waiting=None) == [line]
    assert said(0.5, waiting=0) == []


def test_a_busy_cpu_is_named() -> None:
    estimate, note = said(2, waiting=2)
    assert estimate.startswith("about 3 min 10 s left")
    assert note.startswith("note: the CPU is busy with other processes: this one waited for a free core 50 %")
    assert len(said(2, waiting=0.5)) == 1


def test_a_run_says_it_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pace, "LONG", 0.0)
    train(tiny_job(images, tmp_path / "run", recipe=tiny_recipe(epochs=2)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("about ")]
    assert len(lines) == 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs the statistics of Linux's scheduler")
def test_times_of_this_process_rise() -> None:
    before = read_core_times()
    assert before is not None
    sum(range(3_000_000))
    after = read_core_times()
    assert after is not None
    assert after[0] > before[0] >= 0
    assert after[1] >= before[1] >= 0
