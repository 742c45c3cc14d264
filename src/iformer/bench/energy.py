"""Energy of the processor's packages, from the RAPL counters of Intel and AMD processors on Linux."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Folder of Linux's counters. Since 2020 only root may read them, unless an administrator allows other users."""

CANNOT_TELL = "this machine cannot tell the energy: it has no RAPL counter that this user may read"


class EnergyMeter:
    """Meter of the energy that all processor packages of this machine consume after its creation.

    A package's counter includes idle cores and other processes.
    """

    def __init__(self, counters: list[Path]) -> None:
        """Start counting. `counters` are the RAPL folders of the packages."""
        self._counters = counters
        self._last = [_microjoules(folder) for folder in counters]
        self._total = 0

    def joules(self) -> float:
        """Return the energy in joules since the meter was created.

        Call this method every few minutes, because only one overflow of a counter between two calls is corrected.
        """
        for index, folder in enumerate(self._counters):
            now = _microjoules(folder)
            step = now - self._last[index]
            if step < 0:
                step += int((folder / "max_energy_range_uj").read_text())
            self._last[index] = now
            self._total += step
        return self._total / 1e6


def find_meter() -> EnergyMeter | None:
    """Return an energy meter of this machine; None if there is no RAPL counter that this user may read."""
    counters = [
        folder
        for folder in sorted(POWERCAP.glob("*-rapl:*"))
        if _read(folder / "name").startswith("package-") and _read(folder / "energy_uj").isdigit()
    ]
    return EnergyMeter(counters) if counters else None


def _microjoules(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


def _read(path: Path) -> str:
    """Return the text of a small file; an empty string if the file cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
