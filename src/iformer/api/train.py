"""`iformer.train`: one call from a data set to a trained network and its report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iformer.tasks.interface import Warn
from iformer.tasks.train import is_main_process, training_job
from iformer.training.job import TrainJob
from iformer.training.records.results import TrainResult


def train(
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    task: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    val_split: float | None = None,
    strict: bool = False,
    device: str = "auto",
    tensorboard: bool = True,
    warn: Warn | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> TrainResult:
    """Train or fine-tune a network; the same as the verb `train`.

    Progress goes to stderr: a bar on a terminal, a line for each epoch elsewhere, such as in a notebook.

    Args:
        data: a folder, tar shards, a URL, `hfds/NAME` or `elpv`; see "Train a classifier" and the pages of the
            other tasks. None: that of the run in `out`, with `resume`.
        out: the run folder.
        model: a size, or a checkpoint to fine-tune. None: "iformer_t", or that of the resumed run.
        task: "classify", "detect" or "segment". None: the recipe's, or "classify".
        recipe: name or YAML file of a recipe. None: the task's default.
        resume: continue the run in `out`, with its own settings where an argument is None.
        overwrite: remove the run that is in `out` first.
        val_split: share of the images for validation, if the data is not split. None: 0.2.
        strict: an image that cannot be read is an error instead of being skipped.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        tensorboard: write TensorBoard's files.
        warn: called with each warning about the data. None: each becomes a Python warning.
        settings: recipe fields by name, such as `{"augment.hflip": 0.0}`.
        fields: recipe fields: `epochs=20`, `lr=1e-4`, `augment={"hflip": 0.0}`. They replace `settings`.

    Returns:
        Metrics, history and paths of the run. It stands for the run folder where a name is taken, such as in
        `iformer.load`.

    Raises:
        UserError: a file or setting of the job does not exist, does not fit or cannot be read.
    """
    job = prepare(
        data,
        out=out,
        model=model,
        task=task,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
        val_split=val_split,
        strict=strict,
        device=device,
        tensorboard=tensorboard,
        warn=warn,
        overrides={**(settings or {}), **fields},
    )
    from iformer.training.loop import train as run  # deferred: `--help` needs no loop

    return run(job)


def prepare(
    data: str | os.PathLike[str] | None,
    *,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    warn: Warn | None = None,
    **options: Any,
) -> TrainJob:
    """Build the job that `train` runs; nothing is written. `options` are those of `training_job`."""
    if warn is None:
        warn = python_warnings
    if not is_main_process():
        warn = _ignore
    return training_job(
        Path(out), data=_text(data), model=_text(model), recipe=_text(recipe), warn=warn, **options
    )


def python_warnings(lines: Sequence[str]) -> None:
    """Show each line as a Python warning."""
    for line in lines:
        warnings.warn(line, stacklevel=4)


def _ignore(lines: Sequence[str]) -> None:
    pass


def _text(name: str | os.PathLike[str] | None) -> str | None:
    return None if name is None else os.fspath(name)
