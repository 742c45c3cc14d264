"""Figures over the records of several machines: their median, their range, and a sentence about the machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Figure = Callable[[Any], float]
"""Finds a figure in the figures of a record; KeyError or StopIteration: the record does not have it."""


def records(name: str) -> list[dict[str, Any]]:
    """The records of CPUs in a file of `results`, oldest first."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["records"]
    return [record for record in found if record["device"].startswith("CPU")]


def machine(record: dict[str, Any], beside: Sequence[dict[str, Any]]) -> str:
    """The fingerprint of a record's machine.

    A record that says no more than the processor's name counts as made on the first machine with that name.
    """
    found: str = record["machine"]["fingerprint"]
    if "instructions" in record["machine"]:
        return found
    alike = (other["machine"] for other in beside if other["machine"]["cpu"] == record["machine"]["cpu"])
    return next((other["fingerprint"] for other in alike if "instructions" in other), found)


def at(*path: str) -> Figure:
    """The figure at a path of keys; in a list, a key selects the row with this label."""

    def figure(found: Any) -> float:
        for key in path:
            found = found[key] if isinstance(found, dict) else next(row for row in found if row["label"] == key)
        return float(found)

    return figure


def values(name: str, figure: Figure) -> dict[str, list[float]]:
    """A figure in all records of a file that have it, by machine."""
    found: dict[str, list[float]] = {}
    for record in (everything := records(name)):
        try:
            value = figure(record["figures"])
        except (KeyError, StopIteration):
            continue
        found.setdefault(machine(record, everything), []).append(value)
    return found


def median(name: str, figure: Figure) -> float:
    """The median over machines of the median of each machine's records.

    Raises:
        statistics.StatisticsError: no record has the figure.
    """
    return statistics.median(statistics.median(of_one) for of_one in values(name, figure).values())


def spread(name: str, figure: Figure, unit: str = "x") -> str:
    """The `median` of a ratio and, if several records have it, their range: `1.24x (0.97 to 1.31)`."""
    every = [value for of_one in values(name, figure).values() for value in of_one]
    middle = f"{median(name, figure):.2f}{unit}"
    return middle if len(every) == 1 else f"{middle} ({min(every):.2f} to {max(every):.2f})"


def seen_on(name: str) -> str:
    """On what machines the records of a file were made, in words."""
    found = records(name)
    number = len({machine(record, found) for record in found})
    machines = "one machine" if number == 1 else f"{number} machines"
    if len(found) > 1:
        # records with short settings do not have every figure
        return f"{machines}: the median (range over {len(found)} records); figures without a range on one of them"
    versions, day = found[0]["versions"], found[0]["created"][:10]
    return f"{machines}: {found[0]['device']}, torch {versions['torch']}, {day}"
