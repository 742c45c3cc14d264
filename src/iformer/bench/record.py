"""Benchmark results as JSON files with provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from iformer.files import write_text
from iformer.training.records.provenance import describe_device, origin


def record(figures: dict[str, Any], *, device: torch.device | None = None) -> dict[str, Any]:
    """Return `figures` together with the command, commit, versions, device and thread count of this process."""
    return {
        **origin(),
        "device": describe_device(device or torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "figures": figures,
    }


def write_record(path: Path, figures: dict[str, Any], *, device: torch.device | None = None) -> None:
    """Write `record(figures)` to a JSON file; parent folders are created."""
    write_json(path, record(figures, device=device))


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result of `record` to a JSON file; parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
