"""Cross-validation: one run for each fold, and a report of the mean and the spread."""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iformer.data.listing import is_hidden
from iformer.data.sources.splitting import MAX_FOLDS
from iformer.errors import UserError
from iformer.files import json_text, write_text
from iformer.tables import Markdown, markdown_code, markdown_table, markdown_text
from iformer.tasks.registry import find_task
from iformer.tasks.training_job import StoredRun, is_main_process
from iformer.training.job import TrainJob
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.sections import write_markdown

_FOLD = re.compile(r"fold-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean, standard deviation and values of a metric over the folds."""

    mean: float
    std: float
    """Sample standard deviation."""
    values: tuple[float, ...]
    """One value for each fold."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CrossValidation(os.PathLike[str]):
    """Result of a cross-validation, with one run per fold. Each image is validated in exactly one run."""

    folder: Path
    folds: tuple[TrainResult, ...]
    """The run of each fold, in `folder / "fold-1"` and so on."""
    metrics: dict[str, Spread] = field(repr=False)
    """Metrics that are one number, such as `top1` and `loss`, by name; shares are in percent."""
    report: Path
    """Path of `report.md` in `folder`."""

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def headline(self) -> str:
        """The headline metric as one line: `top-1 91.20 % +- 0.84 over 5 folds`."""
        metadata = self.folds[0].metadata
        key, label = find_task(metadata.task).headline(multi_label=metadata.multi_label)
        found = self.metrics[key]
        return f"{label} {found.mean:.2f} % +- {found.std:.2f} over {len(self.folds)} folds"

    def __repr__(self) -> str:
        first = self.folds[0]
        return f"CrossValidation({first.model_name} on {first.data_name}: {self.headline}; {self.folder})"


def check_folder(folder: Path, folds: int, *, resume: bool, overwrite: bool) -> None:
    """Check that a cross-validation may use the folder; the runs check their own folders.

    Raises:
        UserError: `folds` is out of its range, or the folder is a file, holds other files, or holds a
            cross-validation that has more folds, is resumed with another number of folds, or is neither resumed
            nor overwritten.
    """
    if not 2 <= folds <= MAX_FOLDS:
        raise UserError(f"--folds is {folds}; expected 2 to {MAX_FOLDS}")
    if not os.path.exists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; --out names a folder")
    files = RunFolder(folder)
    if files.config.exists():
        further = "leave out --folds to continue it, or " if resume else ""
        raise UserError(f"{folder} holds a single run; {further}give another --out")
    numbers = [int(found[1]) for file in folder.iterdir() if (found := _FOLD.fullmatch(file.name))]
    others = [
        file
        for file in folder.iterdir()
        if not (_FOLD.fullmatch(file.name) or is_hidden(file.name) or file in (files.report, files.metrics))
    ]
    if others and not (resume and numbers):
        raise UserError(f"{folder} holds files that are not of a cross-validation; give another --out")
    if resume:
        _check_number_of_folds(folder, numbers, folds)
    if numbers and max(numbers) > folds:
        raise UserError(f"{folder} holds fold-{max(numbers)} of more folds than {folds}; give another --out")
    if numbers and not (resume or overwrite):
        raise UserError(
            f"{folder} holds a cross-validation already; --resume continues it, --overwrite removes it, another "
            "--out leaves it alone"
        )


def _check_number_of_folds(folder: Path, numbers: Sequence[int], folds: int) -> None:
    """Raise `UserError` if one of the runs in the folder was begun with another number of folds."""
    for number in sorted(numbers):
        run = StoredRun.read(folder / f"fold-{number}")
        if run is not None and (run.fold is None or run.fold[1] != folds):
            begun = "without --folds" if run.fold is None else f"with --folds {run.fold[1]}"
            remedy = "give another --out" if run.fold is None else f"give --folds {run.fold[1]}, or another --out"
            raise UserError(
                f"{folder}: its run fold-{number} was begun {begun}, not with --folds {folds}; {remedy}"
            )


def train_folds(job_of_fold: Callable[[int], TrainJob], folder: Path, *, folds: int) -> CrossValidation:
    """Train one network for each fold, one after the other, and write `report.md` and `metrics.json`.

    Args:
        job_of_fold: prepares the run of a fold, numbered from 1, in `folder / "fold-NUMBER"`.
        folder: see `check_folder`.
        folds: number of folds.
    """
    from iformer.training.loop import train  # deferred: `--help` needs no loop

    results = []
    for number in range(1, folds + 1):
        job = job_of_fold(number)
        if is_main_process():
            print(f"fold {number} of {folds}", file=sys.stderr, flush=True)
        results.append(train(job))
    result = CrossValidation(
        folder=folder,
        folds=tuple(results),
        metrics=_spreads(results),
        report=RunFolder(folder).report,
    )
    if is_main_process():
        _write(result)
    return result


def _spreads(results: Sequence[TrainResult]) -> dict[str, Spread]:
    found = {}
    for name in results[0].evaluation.summary:
        values = [result.evaluation.summary[name] for result in results if name in result.evaluation.summary]
        if name != "images" and len(values) == len(results):
            found[name] = Spread(
                mean=statistics.mean(values), std=statistics.stdev(values), values=tuple(map(float, values))
            )
    return found


def _write(result: CrossValidation) -> None:
    first, files = result.folds[0], RunFolder(result.folder)
    record: dict[str, Any] = {
        "folds": len(result.folds),
        "metrics": {name: vars(spread) for name, spread in result.metrics.items()},
        "images": sum(fold.metrics["images"] for fold in result.folds),
        "seconds": sum(fold.seconds for fold in result.folds),
    }
    write_text(files.metrics, json_text(record, indent=2))
    write_markdown(
        files.report,
        [
            f"# {markdown_text(first.model_name)} on {markdown_code(first.data_name)}, {len(result.folds)} folds",
            f"**{result.headline.replace('+-', '±')}**: mean and sample standard deviation of the weights at "
            f"the end of each run. Each of the {record['images']:,} images validates one network and trains the "
            "others; images of one group are never on both sides.",
            "## Folds\n\n" + _fold_table(result),
            "## Classes\n\n" + _class_table(result),
        ],
    )


def _fold_table(result: CrossValidation) -> str:
    def row(title: Any, images: str, values: Sequence[float], form: Callable[[float], Any]) -> list[Any]:
        return [title, images, *map(form, values)]

    spreads = result.metrics.values()
    rows = [
        row(
            Markdown(f"[{number}](fold-{number}/report.md)"),
            f"{fold.metrics['images']:,}",
            [spread.values[number - 1] for spread in spreads],
            _number,
        )
        for number, fold in enumerate(result.folds, start=1)
    ]
    rows += [
        row(Markdown("**mean**"), "", [s.mean for s in spreads], lambda value: Markdown(f"**{_number(value)}**")),
        row("standard deviation", "", [s.std for s in spreads], _number),
    ]
    return markdown_table(["fold", "images", *(name.replace("_", " ") for name in result.metrics)], rows)


def _class_table(result: CrossValidation) -> str:
    """Return a table of the mean and standard deviation over the folds of each class's scores.

    Folds without an image of a class do not count for the class.
    """
    columns = {name: title for name, title in result.folds[0].evaluation.columns.items() if name != "support"}

    def cell(class_name: str, column: str) -> str:
        scores = [fold.metrics["per_class"][class_name][column] for fold in result.folds]
        values = [score for score in scores if score is not None]
        if not values:
            return "-"
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"

    names = list(result.folds[0].metrics["per_class"])
    images = {name: sum(fold.metrics["per_class"][name]["support"] for fold in result.folds) for name in names}
    rows = [[name, *(cell(name, column) for column in columns), f"{images[name]:,}"] for name in names]
    return markdown_table(["class", *columns.values(), "images"], rows)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
