"""Figures over the records of several machines: their median, their range, and a sentence about the machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Figure = Callable[[Any], float]
"""Finds a figure in the figures of a record, or raises KeyError if the record does not have it."""


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
            found = (found if isinstance(found, dict) else {row["label"]: row for row in found})[key]
        return float(found)

    return figure


def values(name: str, figure: Figure) -> dict[str, list[float]]:
    """A figure in all records of a file that have it, by machine."""
    found: dict[str, list[float]] = {}
    for record in (everything := records(name)):
        try:
            value = figure(record["figures"])
        except KeyError:
            continue
        found.setdefault(machine(record, everything), []).append(value)
    return found


def median(name: str, figure: Figure) -> float:
    """The median over machines of the median of each machine's records.

    Raises:
        statistics.StatisticsError: no record has the figure.
    """
    return statistics.median(statistics.median(of_one) for of_one in values(name, figure).values())


def fullest(name: str) -> dict[str, Any]:
    """The figures of the newest of the records that have the most of them."""
    newest_first = reversed(records(name))
    figures: dict[str, Any] = max(newest_first, key=lambda record: len(json.dumps(record["figures"])))["figures"]
    return figures


def of_fullest(name: str, figure: Figure) -> float:
    """A figure, such as a time, of the `fullest` record, as those of two machines do not mix."""
    return figure(fullest(name))


def spread(name: str, figure: Figure, unit: str = "x") -> str:
    """The `median` of a ratio and, if the records differ, their range: `1.24x (0.97 to 1.31)`."""
    every = [value for of_one in values(name, figure).values() for value in of_one]
    middle, low, high = (f"{value:.2f}" for value in (median(name, figure), min(every), max(every)))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


def seen_on(name: str) -> str:
    """On what machines the records of a file were made, in words."""
    found = records(name)
    number = len({machine(record, found) for record in found})
    days = sorted({record["created"][:10] for record in found})
    place = f"one machine, {found[-1]['device']}" if number == 1 else f"{number} machines"
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    if len(found) > 1:
        return f"{place}, {when}; ratios are medians, with the range where {len(found)} records differ"
    return f"{place}, torch {found[0]['versions']['torch']}, {when}"
