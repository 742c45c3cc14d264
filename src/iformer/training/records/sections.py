"""Report sections that all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iformer.errors import counted
from iformer.files import write_text
from iformer.tables import Markdown, markdown_code, markdown_table, markdown_text
from iformer.training.records.pace import format_seconds
from iformer.training.records.results import TrainResult

_WARNINGS = 20
_SHOWN_ELSEWHERE = ("command", "resumed", "model", "data", "recipe", "metrics_precision")
"""Provenance entries that have their own place in the report."""


def write_markdown(path: Path, sections: Sequence[str]) -> Path:
    """Write the sections that are not empty as a Markdown file; return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_text(path, "\n\n".join(filter(None, sections)) + "\n")


def making(result: TrainResult, history: Sequence[dict[str, Any]]) -> str:
    """Return the section on how the network was made: command, data, device, time, versions and warnings."""
    provenance = result.metadata.provenance
    rates = [record["images_per_second"] for record in history if record.get("images_per_second")]
    waits = [record["data_wait"] for record in history if record.get("data_wait") is not None]
    rows = [
        ["command", markdown_code(provenance.get("command", "unknown"))],
        *(["resumed", _start(start)] for start in provenance.get("resumed", ())),
        ["network", f"{result.model_name}, {result.parameters / 1e6:.3f} M parameters"],
        [
            "data",
            Markdown(
                f"{markdown_code(result.data_name)}: {result.train_images} training and "
                f"{result.metrics['images']} validation images"
            ),
        ],
        ["recipe", Markdown(f"{markdown_code(result.recipe_name)}, {counted(len(history), 'epoch')}")],
        [
            "device",
            f"{result.device}, {result.precision}"
            + (f", {result.processes} processes" if result.processes > 1 else ""),
        ],
        ["time", format_seconds(result.seconds)],
    ]
    if rates:
        rows.append(["training rate", f"{sorted(rates)[len(rates) // 2]:.1f} images/s (median over epochs)"])
    if waits:
        rows.append(["waiting for images", f"{100 * sum(waits) / len(waits):.1f} % of the training time"])
    rows += [
        [key.replace("_", " "), _plain(value)]
        for key, value in provenance.items()
        if key not in _SHOWN_ELSEWHERE and value
    ]
    text = "## How it was made\n\n" + markdown_table(["", ""], rows, left=2)
    if result.warnings:
        text += f"\n\n### Warnings ({len(result.warnings)})\n\n"
        text += "\n".join(f"- {markdown_text(warning)}" for warning in result.warnings[:_WARNINGS])
        if len(result.warnings) > _WARNINGS:
            text += f"\n- and {len(result.warnings) - _WARNINGS} more"
    return text


def settings(result: TrainResult) -> str:
    """Return the section with every field of the recipe."""
    text = yaml.safe_dump(result.recipe.to_plain(), sort_keys=False, allow_unicode=True)
    return f"## Every setting\n\n```yaml\n{text}```"


def _start(start: dict[str, Any]) -> Markdown:
    """Return the command of a resumption with its date and, if known, commit and other versions."""
    further = {name: start[name] for name in ("created", "commit", "versions") if start.get(name)}
    return Markdown(
        f"{markdown_code(str(start.get('command', 'unknown')))} {markdown_text(f'({_plain(further)})')}"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
