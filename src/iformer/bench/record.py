"""A benchmark's result as a file that says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from iformer.files import write_text
from iformer.training.records.provenance import describe_device, origin


def record(figures: dict[str, Any], *, device: torch.device | None = None) -> dict[str, Any]:
    """Figures with the command, commit, versions, device and thread count they were measured with."""
    return {
        **origin(),
        "device": describe_device(device or torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "figures": figures,
    }


def write_record(path: Path, figures: dict[str, Any], *, device: torch.device | None = None) -> None:
    """Write `record` as JSON; parent folders are made."""
    write_json(path, record(figures, device=device))


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a `record`; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
