"""`report.md` of a detector or segmenter: how good it is, class by class, and what it says of some images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iformer.data.images import read_image
from iformer.data.transforms import Normalize
from iformer.files import replacing
from iformer.models.detector import Detector
from iformer.models.segmenter import Segmenter
from iformer.models.weights.dense_checkpoint import load_dense
from iformer.tables import markdown_code, markdown_table
from iformer.tasks.dense_dataset import fitted, image_tensor
from iformer.tasks.drawing import draw_classes, draw_detections
from iformer.tasks.segmentation.loss import classes_of
from iformer.training.records.figures import draw_curves
from iformer.training.records.results import DetectionEvaluation, SegmentationEvaluation, TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.sections import making, settings, write_markdown

_PICTURES, _COLUMNS, _SIDE = 12, 4, 400
_SAID = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
}


def write_detection_report(result: TrainResult) -> Path:
    """Write `report.md`, `curves.png` and `predictions.png` of a detector into the run folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation = result.evaluation
    assert isinstance(evaluation, DetectionEvaluation)
    metrics = result.metrics
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in metrics]
    overall = markdown_table(
        ["", *_SAID.values()],
        [[kind, *(_number(metrics[f"{kind}_{name}"]) for name in _SAID)] for kind in kinds],
    )
    columns = [f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50")]
    headline = (
        f"**Box AP {metrics['box_ap']:.2f} %, AP50 {metrics['box_ap50']:.2f} %** on {metrics['images']} "
        f"validation images: {_weights(result)}\n\n{overall}\n\nAP is COCO's: the mean over overlaps of 0.5 to "
        "0.95 and over classes. Small, medium and large are objects of less than 32 x 32 pixels, of less than "
        "96 x 96, and others."
    )
    paths = [sample.path for sample in evaluation.image_set.samples]
    return _write(
        result,
        headline,
        columns=columns,
        labels=[name.replace("_", " ").replace("ap", "AP") for name in columns],
        support="objects",
        paths=paths,
        loss_label="sum of the losses",
    )


def write_segmentation_report(result: TrainResult) -> Path:
    """Write `report.md`, `curves.png` and `predictions.png` of a segmenter into the run folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation = result.evaluation
    assert isinstance(evaluation, SegmentationEvaluation)
    metrics = result.metrics
    headline = (
        f"**mIoU {metrics['miou']:.2f} %**, pixel accuracy {metrics['pixel_accuracy']:.2f} %, mean accuracy "
        f"of the classes {metrics['mean_accuracy']:.2f} % on {metrics['images']} validation images: "
        f"{_weights(result)}"
    )
    return _write(
        result,
        headline,
        columns=["iou", "accuracy"],
        labels=["IoU", "accuracy"],
        support="pixels",
        paths=[sample.path for sample in evaluation.image_set.samples],
        loss_label="cross entropy",
    )


def _write(
    result: TrainResult,
    headline: str,
    *,
    columns: Sequence[str],
    labels: Sequence[str],
    support: str,
    paths: Sequence[Path],
    loss_label: str,
) -> Path:
    files = RunFolder(result.folder)
    metric, label = ("box_ap", "box AP") if "box_ap" in result.metrics else ("miou", "mIoU")
    draw_curves(
        result.history,
        result.folder / "curves.png",
        best_epoch=result.best.get("epoch"),
        metric=metric,
        metric_label=label,
        title=f"Validation {label}",
        loss_label=loss_label,
    )
    _draw_predictions(files.last, paths, result.folder / "predictions.png")
    rows = [
        [name, *(_number(scores[column]) for column in columns), f"{scores['support']:,}"]
        for name, scores in result.metrics["per_class"].items()
    ]
    best = result.best
    sections = [
        f"# {result.model_name} on {markdown_code(result.data_name)}",
        headline,
        f"The best evaluation was {best[metric]:.2f} % (epoch {best['epoch']}, kept as `best.safetensors`). It "
        "was chosen on these very images, so that number is optimistic.",
        "## Curves\n\n![Loss, metric and learning rate against epochs](curves.png)",
        "## Predictions\n\n![What the network says of validation images](predictions.png)",
        "## Classes\n\n" + markdown_table(["class", *(f"{text} %" for text in labels), support], rows),
        making(result, result.history),
        settings(result),
    ]
    return write_markdown(files.report, sections)


def _weights(result: TrainResult) -> str:
    averaged = " (their running average)" if result.recipe.ema_decay is not None else ""
    return f"the weights at the end of training{averaged}, in fp32."


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


def _draw_predictions(checkpoint: Path, paths: Sequence[Path], out: Path) -> None:
    """A sheet of evenly chosen validation images with what the network says of them."""
    network = load_dense(checkpoint)
    step = max(1, len(paths) // _PICTURES)
    pictures = [_thumbnail(predicted_picture(network, read_image(path))) for path in paths[::step][:_PICTURES]]
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * _SIDE, rows * _SIDE), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * _SIDE, index // columns * _SIDE))
    with replacing(out) as file:
        sheet.save(file, format="PNG")


@torch.inference_mode()
def predicted_picture(network: Detector | Segmenter, image: Image.Image) -> Image.Image:
    """An RGB image with what a network in eval mode on the CPU says of it."""
    names = network.metadata.class_names
    if isinstance(network, Detector):
        found = network([image_tensor(image).float() / 255])[0]
        return draw_detections(image, found, names)
    config = network.config
    resized = image.resize(fitted(image.size, config.size, config.max_size), Image.Resampling.BILINEAR)
    normalized = Normalize(config.preprocessing)(image_tensor(resized)[None])
    classes_HW = classes_of(network, normalized, (image.height, image.width))
    return draw_classes(image, classes_HW.numpy().astype(np.uint8), names, config.colours)


def _thumbnail(picture: Image.Image) -> Image.Image:
    scale = (_SIDE - 8) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(picture.resize(size, Image.Resampling.LANCZOS), ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return square
