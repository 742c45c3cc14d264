"""Write the `report.md` of a segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iformer.data.segmentation import SemanticSet
from iformer.models.weights.resolve import load
from iformer.tasks.pictures import save_png
from iformer.tasks.pyramid import example_sheet
from iformer.tasks.report import EXAMPLES, EXAMPLES_SECTION, final_weights, write_task_report
from iformer.tasks.segmentation.evaluate import SegmentationEvaluation
from iformer.tasks.segmentation.predict import SegmentationPredictor
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder


def write_report(result: TrainResult) -> Path:
    """Write `report.md`, `curves.png` and `predictions.png` of a segmenter into the run folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation, metrics = result.evaluation, result.metrics
    assert isinstance(evaluation, SegmentationEvaluation)
    headline = (
        f"**mIoU {metrics['miou']:.2f} %**, pixel accuracy {metrics['pixel_accuracy']:.2f} %, mean accuracy "
        f"of the classes {metrics['mean_accuracy']:.2f} % on {metrics['images']} validation images: "
        f"{final_weights(result)}."
    )
    network = load(RunFolder(result.folder).last)
    save_png(draw_examples(network, evaluation.image_set, name=result.model_name), result.folder / EXAMPLES)
    return write_task_report(result, headline, [EXAMPLES_SECTION])


def draw_examples(
    network: Any, images: SemanticSet, *, name: str, device: torch.device | str = "cpu"
) -> Image.Image:
    """Draw validation images, each with its mask and with the classes that a network predicts."""
    predictor = SegmentationPredictor(network, device=device)
    return example_sheet(
        predictor,
        [sample.path for sample in images.samples],
        lambda index, image, scale: predictor.draw(image, images.read_mask(images.samples[index]), scale),
        title=f"{name}: classes of pixels",
    )
