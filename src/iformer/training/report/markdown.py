"""`report.md`: what was trained, how good it is, where it fails, and how it was made."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iformer.training.report.figures import draw_confusion, draw_curves, draw_mistakes, worst_mistakes
from iformer.training.results import ClassificationEvaluation, TrainResult

_PAIRS, _PROBLEMS = 10, 20
_TOLD_ELSEWHERE = ("command", "model", "data", "recipe")
"""Entries of the provenance that have a row or a section of their own."""


def write_report(folder: Path, *, result: TrainResult, history: Sequence[dict[str, Any]] | None = None) -> Path:
    """Write `report.md`, `curves.png`, `confusion.png` and, where there are mistakes, `mistakes.png`.

    Args:
        folder: an existing folder; older files of these names are replaced, each in one step.
        history: one record an epoch; None takes `result.history`.

    Returns:
        The path of `report.md`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    history = result.history if history is None else history
    evaluation = result.evaluation
    assert isinstance(evaluation, ClassificationEvaluation)
    names = evaluation.image_set.class_names
    draw_curves(history, folder / "curves.png", best_epoch=result.best.get("epoch"))
    draw_confusion(evaluation.metrics["confusion"], names, folder / "confusion.png")
    mistakes_png = folder / "mistakes.png"
    mistakes = draw_mistakes(worst_mistakes(evaluation), mistakes_png)
    if mistakes is None:
        mistakes_png.unlink(missing_ok=True)  # an older run's gallery is not this one's
    sections = [
        _headline(result),
        "## Curves\n\n![Loss, accuracy and learning rate against epochs](curves.png)",
        _per_class(result),
        _confusion(result),
        _mistakes(result, shown=mistakes is not None),
        _making(result, history),
        _settings(result),
    ]
    path = folder / "report.md"
    partial = folder / ".report.md.partial"
    try:
        partial.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's) of a share of `count` images; shares are 0 to 1."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _headline(result: TrainResult) -> str:
    metrics, best = result.metrics, result.best
    count = metrics["images"]
    low, high = wilson_interval(metrics["top1"] / 100, count)
    largest = max(per_class["support"] for per_class in metrics["per_class"].values())
    top5 = f", top-5 {metrics['top5']:.2f} %" if "top5" in metrics else ""
    lines = [
        f"# {result.model_name} on {_code(result.data_name)}",
        f"**Top-1 {metrics['top1']:.2f} %**{top5} on {count} validation images: the weights at the end of training"
        f"{' (their running average)' if result.recipe.ema_decay is not None else ''}, in fp32, at "
        f"{result.recipe.size} x {result.recipe.size}. For a set of this size the 95 % interval is "
        f"{100 * low:.1f} to {100 * high:.1f} %. Always naming the largest class would reach "
        f"{100 * largest / max(count, 1):.1f} %.",
    ]
    if "top1" in best:
        lines.append(
            f"The best evaluation was {best['top1']:.2f} % (epoch {best.get('epoch', '?')}, kept as "
            "`best.safetensors`). It was chosen on these very images, so that number is optimistic."
        )
    return "\n\n".join(lines)


def _per_class(result: TrainResult) -> str:
    metrics = result.metrics
    rows = [
        [_cell(name), *(f"{values[key]:.1f}" for key in ("precision", "recall", "f1")), str(values["support"])]
        for name, values in metrics["per_class"].items()
    ]
    macro = metrics["macro"]
    rows.append(
        [
            "**mean over classes**",
            *(f"**{macro[key]:.1f}**" for key in ("precision", "recall", "f1")),
            str(metrics["images"]),
        ]
    )
    return "## Classes\n\n" + _table(["class", "precision %", "recall %", "F1 %", "images"], rows)


def _confusion(result: TrainResult) -> str:
    names = list(result.metrics["per_class"])
    confusion = result.metrics["confusion"]
    pairs = sorted(
        (
            (confusion[true][predicted], true, predicted)
            for true in range(len(names))
            for predicted in range(len(names))
            if true != predicted and confusion[true][predicted]
        ),
        key=lambda pair: -pair[0],
    )
    text = "## Confusion\n\n![Confusion matrix](confusion.png)"
    if len(names) > 2 and pairs:
        rows = [
            [_cell(names[true]), _cell(names[predicted]), str(count), f"{100 * count / sum(confusion[true]):.1f}"]
            for count, true, predicted in pairs[:_PAIRS]
        ]
        text += "\n\n" + _table(["true", "taken for", "images", "% of the true class"], rows)
    return text


def _mistakes(result: TrainResult, *, shown: bool) -> str:
    if not shown:
        wrong = result.metrics["top1"] < 100
        return "## Mistakes\n\n" + ("Their images can no longer be read." if wrong else "None.")
    return "## The worst mistakes\n\n![Images with their predicted and true class](mistakes.png)"


def _making(result: TrainResult, history: Sequence[dict[str, Any]]) -> str:
    provenance = result.metadata.provenance
    rates = [record["images_per_second"] for record in history if record.get("images_per_second")]
    waits = [record["data_wait"] for record in history if record.get("data_wait") is not None]
    rows = [
        ["command", _code(provenance.get("command", "unknown"))],
        ["network", f"{result.model_name}, {result.parameters / 1e6:.3f} M parameters"],
        [
            "data",
            f"{_code(result.data_name)}: {result.train_images} training and "
            f"{result.metrics['images']} validation images",
        ],
        ["recipe", f"`{result.recipe_name}`, {len(history)} epochs"],
        [
            "device",
            f"{result.device}, {result.precision}"
            + (f", {result.processes} processes" if result.processes > 1 else ""),
        ],
        ["time", _duration(result.seconds)],
    ]
    if rates:
        rows.append(["training rate", f"{sorted(rates)[len(rates) // 2]:.1f} images/s (median over epochs)"])
    if waits:
        rows.append(["waiting for images", f"{100 * sum(waits) / len(waits):.1f} % of the training time"])
    rows += [
        [key.replace("_", " "), _plain(value)]
        for key, value in provenance.items()
        if key not in _TOLD_ELSEWHERE and value
    ]
    text = "## How it was made\n\n" + _table(["", ""], rows)
    if result.problems:
        text += f"\n\n### Problems with the data ({len(result.problems)})\n\n"
        text += "\n".join(f"- {_cell(problem)}" for problem in result.problems[:_PROBLEMS])
        if len(result.problems) > _PROBLEMS:
            text += f"\n- and {len(result.problems) - _PROBLEMS} more"
    return text


def _settings(result: TrainResult) -> str:
    settings = yaml.safe_dump(result.recipe.to_plain(), sort_keys=False, allow_unicode=True)
    return f"## Every setting\n\n```yaml\n{settings}```"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(header) - 1)] if len(header) > 2 else ["---"] * len(header)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return _cell(str(value))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
