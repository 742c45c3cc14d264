"""Read the epochs of a run's `log.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the `epoch` records of a log in order. Damaged lines are left out."""
    history = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            if record.pop("event") == "epoch" and isinstance(record["epoch"], int):
                history.append(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return history
