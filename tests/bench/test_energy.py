"""The energy meter, on a folder like Linux's powercap."""

from __future__ import annotations

from pathlib import Path

import pytest

from iformer.bench import energy
from iformer.bench.energy import find_meter


def counter(folder: Path, name: str, microjoules: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_packages_are_summed_and_counters_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    first = counter(tmp_path / "intel-rapl:0", "package-0", 900_000)
    second = counter(tmp_path / "intel-rapl:1", "package-1", 10)
    counter(tmp_path / "intel-rapl:0:0", "core", 5)  # part of its package
    meter = find_meter()
    assert meter is not None
    assert meter.joules() == 0
    (first / "energy_uj").write_text("100000\n")  # began again at 1,000,000
    (second / "energy_uj").write_text("50010\n")
    assert meter.joules() == pytest.approx(0.25)
    assert meter.joules() == pytest.approx(0.25)


def test_a_machine_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert find_meter() is None
    counter(tmp_path / "intel-rapl:0:0", "core", 5)
    assert find_meter() is None
