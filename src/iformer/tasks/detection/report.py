"""`report.md` of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.models.weights.resolve import load
from iformer.tables import markdown_table
from iformer.tasks.detection.evaluate import DetectionEvaluation
from iformer.tasks.detection.predict import DetectionPredictor
from iformer.tasks.pyramid import draw_examples
from iformer.tasks.report import final_weights, write_task_report
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder

_COLUMNS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
}


def write_report(result: TrainResult) -> Path:
    """Write `report.md`, `curves.png` and `predictions.png` of a detector into the run folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation, metrics = result.evaluation, result.metrics
    assert isinstance(evaluation, DetectionEvaluation)
    overall = markdown_table(
        ["", *_COLUMNS.values()],
        [
            [kind, *(_number(metrics[f"{kind}_{name}"]) for name in _COLUMNS)]
            for kind in ("box", "mask")
            if f"{kind}_ap" in metrics
        ],
    )
    headline = (
        f"**Box AP {metrics['box_ap']:.2f} %, AP50 {metrics['box_ap50']:.2f} %** on {metrics['images']} "
        f"validation images: {final_weights(result)}.\n\n{overall}\n\nAP is COCO's: the mean over IoU thresholds "
        "from 0.5 to 0.95 and over classes. Small objects have less than 32 x 32 pixels, medium ones less than "
        "96 x 96."
    )
    network = load(RunFolder(result.folder).last)
    assert isinstance(network, Detector | LightDetector)
    predictor = DetectionPredictor(network)
    examples = draw_examples(
        predictor,
        [sample.path for sample in evaluation.image_set.samples],
        result.folder / "predictions.png",
        title=f"{result.model_name}: detections with a score of {predictor.min_score} or more",
    )
    return write_task_report(result, headline, [examples], loss_label="sum of the losses")


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"
