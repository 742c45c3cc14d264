"""Read the epochs and the starts of a run from its `log.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the `epoch` records of a log in order. Damaged lines are left out."""
    return [
        record
        for event, record in _records(path.read_bytes())
        if event == "epoch" and isinstance(record.get("epoch"), int)
    ]


def read_starts(path: Path, *, end: int) -> list[dict[str, Any]]:
    """Return the `start` record and the `resume` records in the first `end` bytes of a log; [] without a log."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return [record for event, record in _records(file.read(end)) if event in ("start", "resume")]


def _records(text: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events and the other fields of the records. Damaged lines are left out."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            yield record.pop("event"), record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
