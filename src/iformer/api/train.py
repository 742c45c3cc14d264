"""`iformer.train`: one call from a data set to a trained network and its report."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from iformer.config.checking import FileName, Range, check_arguments
from iformer.errors import UserError
from iformer.plain_values import plain_arguments
from iformer.tasks.folds import CrossValidation, check_folder, train_folds
from iformer.tasks.interface import Warn
from iformer.tasks.training_job import is_main_process, training_job
from iformer.torch_modes import training_modes
from iformer.training.job import TrainJob
from iformer.training.records.results import TrainResult


@training_modes()
@plain_arguments
def train(
    data: FileName | None = None,
    *,
    out: FileName,
    model: FileName | None = None,
    task: str | None = None,
    recipe: FileName | None = None,
    resume: bool = False,
    overwrite: bool = False,
    val_split: float | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    device: str | torch.device = "auto",
    tensorboard: bool = True,
    tracker: str | Sequence[str] | None = None,
    warn: Warn | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> TrainResult:
    """Train or fine-tune a network; the same as the verb `train`.

    Progress goes to stderr: a bar on a terminal, a line for each epoch elsewhere, such as in a notebook.

    Args:
        data: a folder, tar shards, a URL, `hfds/NAME` or `elpv`; see the guide "Train a classifier" and the guides
            of the other tasks. None: the data of the run in `out`, with `resume`.
        out: the run folder.
        model: a size, or a checkpoint to fine-tune. None: "iformer_t", or the model of the resumed run.
        task: "classify", "detect" or "segment". None: the recipe's, or "classify".
        recipe: name or YAML file of a recipe. None: the task's default.
        resume: continue the run in `out`, with its own settings where an argument is None.
        overwrite: remove the run that is in `out` first.
        val_split: share of the images for validation, if the data is not split. None: 0.2.
        classes: classifiers: the classes of the data to take, in the order of the network's outputs. None: all.
        strict: an image that cannot be read is an error instead of being skipped.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        tensorboard: write TensorBoard's files, if `tracker` is None.
        tracker: "tensorboard", "wandb", "mlflow", "comet", several of them, or "none".
        warn: called with each warning about the data. None: each becomes a Python warning.
        settings: recipe fields by name, such as `{"augment.hflip": 0.0}`.
        fields: recipe fields: `epochs=20`, `lr=1e-4`, `augment={"hflip": 0.0}`. They replace `settings`.

    Returns:
        Metrics, history and paths of the run. The result can be given in place of the run folder, such as to
        `iformer.load`.

    Raises:
        UserError: a file or setting of the job does not exist, does not fit or cannot be read.
    """
    if isinstance(classes, str):
        raise UserError(f"classes is '{classes}'; expected a list of names")
    check_is_name(model)
    check_arguments(train, locals())
    job = build_job(
        data,
        out=out,
        model=model,
        task=task,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
        val_split=val_split,
        classes=classes,
        strict=strict,
        device=str(device),
        tensorboard=tensorboard,
        trackers=_names(tracker),
        warn=warn,
        overrides=_overrides(settings, fields),
    )
    from iformer.training.loop import train as run  # deferred: `--help` needs no loop

    return run(job)


@training_modes()
@plain_arguments
def cross_validate(
    data: FileName | None = None,
    *,
    out: FileName,
    folds: Annotated[int, Range(2, 100)] = 5,
    model: FileName | None = None,
    recipe: FileName | None = None,
    resume: bool = False,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    device: str | torch.device = "auto",
    tensorboard: bool = True,
    tracker: str | Sequence[str] | None = None,
    warn: Warn | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> CrossValidation:
    """Train a classifier once for each fold of the data; the same as `iformer train --folds`.

    Every image of the data, whatever its split, validates one of the networks and trains the others. Folds are
    stratified by class; images of one group (column `group` of a table) stay together in one fold. The arguments
    that are not listed here are described at `train`.

    Args:
        data: image files: a folder, a table or `elpv`. None: the data of the runs in `out`, with `resume`.
        out: folder of the runs, `fold-1` and so on, and of their common report.
        folds: number of folds, 2 to 100.
        resume: continue the runs that are in `out`.
        overwrite: remove the runs that are in `out` first.

    Returns:
        Mean, standard deviation and values of each metric, and the runs.

    Raises:
        UserError: see `train`; also if there are too few images for this number of folds.
    """
    check_is_name(model)
    check_arguments(cross_validate, locals())
    return run_folds(
        data,
        out=out,
        folds=folds,
        model=model,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
        classes=classes,
        strict=strict,
        device=str(device),
        tensorboard=tensorboard,
        trackers=_names(tracker),
        warn=warn,
        overrides=_overrides(settings, fields),
    )


def run_folds(
    data: str | os.PathLike[str] | None,
    *,
    out: str | os.PathLike[str],
    folds: int,
    resume: bool = False,
    overwrite: bool = False,
    warn: Warn | None = None,
    **options: Any,
) -> CrossValidation:
    """Run a cross-validation with arguments that are checked already; `options` are for `training_job`."""
    folder = Path(out)
    if is_main_process():
        check_folder(folder, folds, resume=resume, overwrite=overwrite)

    def job(number: int) -> TrainJob:
        return build_job(
            data,
            out=folder / f"fold-{number}",
            fold=(number, folds),
            resume=resume,
            overwrite=overwrite,
            warn=(warn or python_warnings) if number == 1 else _ignore,  # the data is the same for all
            **options,
        )

    return train_folds(job, folder, folds=folds)


def build_job(
    data: str | os.PathLike[str] | None,
    *,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    warn: Warn | None = None,
    **options: Any,
) -> TrainJob:
    """Build the job that `train` runs, without writing anything; `options` are for `training_job`."""
    if warn is None:
        warn = python_warnings
    if not is_main_process():
        warn = _ignore
    return training_job(
        Path(out), data=_text(data), model=_text(model), recipe=_text(recipe), warn=warn, **options
    )


def check_is_name(model: Any) -> None:
    """Check that `model` is a name and not a network.

    Raises:
        UserError: `model` is a network.
    """
    if isinstance(model, nn.Module):
        raise UserError(
            "model is a network; a run records where it started, so save it with iformer.save(network, PATH) and "
            "give that path"
        )


def python_warnings(lines: Sequence[str]) -> None:
    """Show each line as a Python warning that points to the caller's line of code, outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("iformer.", "contextlib")):
        level, frame = level + 1, frame.f_back
    for line in lines:
        warnings.warn(line, stacklevel=level)


def _ignore(lines: Sequence[str]) -> None:
    pass


def _text(name: str | os.PathLike[str] | None) -> str | None:
    return None if name is None else os.fspath(name)


def _overrides(settings: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Merge recipe fields: `fields` replace `settings`, and path-like values (such as a run) become strings."""
    overrides: dict[str, Any] = _paths_as_text({**(settings or {}), **fields})
    return overrides


def _paths_as_text(value: Any) -> Any:
    if isinstance(value, Mapping):  # a section of the recipe
        return {name: _paths_as_text(item) for name, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _names(tracker: str | Sequence[str] | None) -> Sequence[str] | None:
    return [tracker] if isinstance(tracker, str) else tracker
