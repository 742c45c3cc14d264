"""`report.md` of a classifier: what was trained, how good it is, where it fails, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iformer.tables import Markdown, markdown_code, markdown_table
from iformer.training.records.figures import draw_confusion, draw_curves, draw_mistakes, worst_mistakes
from iformer.training.records.results import ClassificationEvaluation, TrainResult
from iformer.training.records.sections import making, settings, write_markdown

_PAIRS = 10


def write_report(folder: Path, *, result: TrainResult, history: Sequence[dict[str, Any]] | None = None) -> Path:
    """Write `report.md`, `curves.png`, `confusion.png` and, where there are mistakes, `mistakes.png`.

    Args:
        folder: an existing folder; older files of these names are replaced, each in one step.
        history: one record an epoch; None takes `result.history`.

    Returns:
        The path of `report.md`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
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
        making(result, history),
        settings(result),
    ]
    return write_markdown(folder / "report.md", sections)


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
        f"# {result.model_name} on {markdown_code(result.data_name)}",
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
        [name, *(f"{values[key]:.1f}" for key in ("precision", "recall", "f1")), str(values["support"])]
        for name, values in metrics["per_class"].items()
    ]
    macro = metrics["macro"]
    rows.append(
        [
            Markdown("**mean over classes**"),
            *(Markdown(f"**{macro[key]:.1f}**") for key in ("precision", "recall", "f1")),
            str(metrics["images"]),
        ]
    )
    return "## Classes\n\n" + markdown_table(["class", "precision %", "recall %", "F1 %", "images"], rows)


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
            [names[true], names[predicted], str(count), f"{100 * count / sum(confusion[true]):.1f}"]
            for count, true, predicted in pairs[:_PAIRS]
        ]
        text += "\n\n" + markdown_table(["true", "taken for", "images", "% of the true class"], rows)
    return text


def _mistakes(result: TrainResult, *, shown: bool) -> str:
    if not shown:
        wrong = result.metrics["top1"] < 100
        return "## Mistakes\n\n" + ("Their images can no longer be read." if wrong else "None.")
    return "## The worst mistakes\n\n![Images with their predicted and true class](mistakes.png)"
