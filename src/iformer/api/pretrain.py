"""`iformer.pretrain`: train a backbone without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from iformer.api.train import check_is_name, train
from iformer.config.checking import FileName, check_arguments
from iformer.plain_values import plain_arguments
from iformer.tasks.interface import Warn
from iformer.training.records.results import TrainResult


@plain_arguments
def pretrain(
    data: FileName | None = None,
    *,
    out: FileName,
    teacher: FileName | None = None,
    model: FileName | None = None,
    recipe: FileName | None = None,
    resume: bool = False,
    overwrite: bool = False,
    val_split: float | None = None,
    strict: bool = False,
    device: str | torch.device = "auto",
    tensorboard: bool = True,
    tracker: str | Sequence[str] | None = None,
    warn: Warn | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> TrainResult:
    """Train a backbone, without labels, to imitate the features of a teacher; the same as the verb `pretrain`.

    Learned projections of the network's pooled features and feature maps are trained to be similar to the features
    of the teacher. `iformer.train(DATA, model=RUN, out=...)` starts from the result.

    Args:
        data: a folder of images at any depth, or a labelled data set, whose labels are not used. None: the data
            of the run in `out`, with `resume`.
        out: the run folder.
        teacher: a timm network with released weights (`timm/NAME`), a size, or a checkpoint of any task. None:
            the teacher of the resumed run.
        model: a size, or a checkpoint to start from. None: "iformer_t", or the model of the resumed run.
        recipe: name or YAML file of a recipe. None: "pretrain".
        resume: continue the run in `out`, with its own settings where an argument is None.
        overwrite: remove the run that is in `out` first.
        val_split: share of the images on which the features are compared. None: 0.1.
        strict: an image that cannot be read is an error instead of being skipped.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        tensorboard: write TensorBoard's files, if `tracker` is None.
        tracker: "tensorboard", "wandb", "mlflow", "comet", several of them, or "none".
        warn: called with each warning about the data. None: each becomes a Python warning.
        settings: recipe fields by name, such as `{"augment.hflip": 0.0}`.
        fields: recipe fields: `epochs=20`, `teacher_weights="net.safetensors"`. They replace `settings`.

    Returns:
        Metrics, history and paths of the run; `metrics["cosine"]` is the mean cosine similarity in percent. The
        result can be given in place of the run folder, such as for `model` of `iformer.train`.

    Raises:
        UserError: a file or setting of the job does not exist, does not fit or cannot be read.
    """
    check_is_name(model)
    check_arguments(pretrain, locals())
    if teacher is not None:
        fields["teacher"] = teacher
    return train(
        data,
        out=out,
        task="pretrain",
        model=model,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
        val_split=val_split,
        strict=strict,
        device=device,
        tensorboard=tensorboard,
        tracker=tracker,
        warn=warn,
        settings=settings,
        **fields,
    )
