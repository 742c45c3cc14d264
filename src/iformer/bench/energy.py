"""Energy of the processor's packages by RAPL, Linux's running counters of Intel and AMD processors."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the counters; since 2020 only root may read them unless an administrator allows it."""

CANNOT_TELL = "this machine cannot tell the energy: it has no RAPL counter that this user may read"


class EnergyMeter:
    """Joules that all packages of this machine's processor have taken since the meter was made.

    A package counts everything that it does, idle cores and other processes included.
    """

    def __init__(self, counters: list[Path]) -> None:
        """Start to count; `counters` are the folders of the packages."""
        self._counters = counters
        self._last = [_microjoules(folder) for folder in counters]
        self._total = 0

    def joules(self) -> float:
        """Return the joules so far. A counter starts again at 0 after minutes or hours, which is allowed for."""
        for index, folder in enumerate(self._counters):
            now = _microjoules(folder)
            step = now - self._last[index]
            if step < 0:
                step += int((folder / "max_energy_range_uj").read_text())
            self._last[index] = now
            self._total += step
        return self._total / 1e6


def find_meter() -> EnergyMeter | None:
    """Return a meter of this machine; None if it cannot tell."""
    counters = [
        folder
        for folder in sorted(POWERCAP.glob("*-rapl:*"))
        if _read(folder / "name").startswith("package-") and _read(folder / "energy_uj").isdigit()
    ]
    return EnergyMeter(counters) if counters else None


def _microjoules(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


def _read(path: Path) -> str:
    """Return the text of a small file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
