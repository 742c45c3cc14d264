"""`iformer.evaluate`: measure a network or an exported artifact on annotated images."""

from __future__ import annotations

import os
from typing import Annotated, Any, get_args

import torch

from iformer.api.engine import with_engine
from iformer.api.train import python_warnings
from iformer.config.checking import Count, FileName, Range, check_arguments
from iformer.errors import UserError
from iformer.plain_values import plain_arguments
from iformer.tasks.interface import EvaluateModule, EvaluateOptions, Split, Warn, check_options
from iformer.tasks.subject import open_subject
from iformer.torch_modes import default_cpu
from iformer.training.network.precision import resolve_precision
from iformer.training.records.results import Evaluation


@default_cpu()
@plain_arguments
def evaluate(
    model: Any,
    data: FileName,
    *,
    split: Split | None = None,
    val_split: float | None = None,
    batch_size: Count | None = None,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    engine: str = "auto",
    workers: Annotated[int, Range(0, 1024)] | None = None,
    strict: bool = False,
    sliding: bool = False,
    max_detections: Annotated[int, Range(1, 100_000)] | None = None,
    iou: Annotated[float, Range(0, 1, above=True)] | None = None,
    entry: str | None = None,
    warn: Warn | None = None,
) -> Evaluation:
    """Measure the accuracy, AP or mIoU of a network on a data set, as the verb `eval` does.

    Args:
        model: a network of this package, any name that `iformer.load` takes, or an exported artifact.
        data: the data set, as for `iformer.train`.
        split: "val", "train" or, for classifiers, "all". None: "val", but "all" for a classifier if the data is
            not split, the classifier was not trained on it, and `val_split` is None.
        val_split: share of the images for validation, if the data is not split. None: the share used in the
            network's training if known, else 0.2.
        batch_size: images in one call. None: 64 for classifiers, 4 for detectors.
        precision: "fp32", "bf16", "fp16" or "auto".
        device: "auto" leaves a network that is given where it is, and opens names on the best device.
        engine: what computes a network's outputs on the CPU: "torch", or "onnx" or "openvino", which export it
            first, in some seconds, and give the same metrics. "auto": "torch".
        workers: processes that load images.
        strict: an image that cannot be read is an error instead of being skipped.
        sliding: segmenters: overlapping windows instead of the whole image.
        max_detections: detectors: largest number of objects on an image. None: as trained.
        iou: detectors: overlap above which the box with the lower score is dropped. None: as trained.
        entry: which weights to take from the file of a training script, such as "model_ema".
        warn: called with notes about the result, one line each. None: each line is a Python warning.

    Returns:
        The metrics, also as attributes: `top1`, `top5` and `loss` of classifiers; `map`, `f1` and `loss` of
        multi-label classifiers; `box_ap` and `mask_ap` of detectors; `miou` of segmenters.

    Raises:
        UserError: the model or the data cannot be opened, they do not fit each other, or an option is invalid or
            not for this kind of network.
    """
    if split not in (None, *get_args(Split)):
        raise UserError(f"split is {split!r}; expected {', '.join(get_args(Split))}")
    check_arguments(evaluate, locals())
    if engine not in ("auto", "torch") and precision != "fp32":
        raise UserError(
            f"--precision is {precision}, and --engine {engine} computes in fp32; leave one of them out"
        )
    subject = open_subject(model, device=device, precision=precision, entry=entry)
    options = EvaluateOptions(
        split=split,
        device=subject.device,
        precision=resolve_precision(precision, subject.device),
        workers=workers,
        strict=strict,
        val_split=val_split,
        batch_size=batch_size,
        sliding=sliding or None,
        max_detections=max_detections,
        iou=iou,
    )
    module: EvaluateModule = subject.row.module("evaluate")
    check_options(options, module.TAKES, subject.row.networks)
    subject = with_engine(subject.in_eval_mode(), engine, warn=warn or python_warnings)
    evaluation, notes = module.evaluate_data(subject.model, os.fspath(data), options)
    (warn or python_warnings)([*subject.notes, *notes])
    return evaluation
