"""`report.md` of a segmenter."""

from __future__ import annotations

from pathlib import Path

from iformer.models.weights.resolve import load
from iformer.tasks.pyramid import draw_examples
from iformer.tasks.report import final_weights, write_task_report
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
    predictor = SegmentationPredictor(load(RunFolder(result.folder).last))
    image_set = evaluation.image_set
    samples = image_set.samples
    examples = draw_examples(
        predictor,
        [sample.path for sample in samples],
        lambda index, image: predictor.draw(image, image_set.read_mask(samples[index])),
        result.folder / "predictions.png",
        title=f"{result.model_name}: classes of pixels",
    )
    return write_task_report(result, headline, [examples])
