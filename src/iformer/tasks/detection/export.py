"""What export needs to know about a detector: its outputs, the comparison of detections, and the INT8 metric.

Shape letters: B batch, A points, K classes, N detections of an image, H and W the sides of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.data.loader import build_loader
from iformer.data.sources.detection import load_detection
from iformer.deploy.exportable import Agreement, Exportable, Forward, Outputs
from iformer.deploy.quantize import Quantization, few_images_note
from iformer.errors import UserError
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.tasks.class_order import refuse_unknown
from iformer.tasks.detection.dataset import DetectionImages, with_class_order
from iformer.tasks.detection.evaluate import evaluate
from iformer.tasks.detection.inference import BOXES, SCORES, LetterboxDetector, detection_agreement
from iformer.tasks.export import calibration_images, check_side
from iformer.tasks.registry import find_task
from iformer.tasks.trained_split import load_as_trained


class DenseDetector(nn.Module):
    """A light detector without selection: normalised B x 3 x H x W to boxes, B x A x 4, and scores, B x A x K."""

    def __init__(self, detector: LightDetector) -> None:
        super().__init__()
        self.pyramid, self.head = detector.pyramid, detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(self.pyramid(images))
        return found.boxes, found.scores


class ExportableDetector:
    """A light detector with the interface `iformer.deploy.exportable.Exportable`."""

    outputs = (BOXES, SCORES)
    class_logits = None
    channels = 3
    limits = None

    def __init__(self, model: LightDetector) -> None:
        """Wrap a light detector that is in eval mode."""
        self._detector, self.model = model, DenseDetector(model)
        self.name = model.config.backbone.name
        self.metadata: Metadata = replace(model.metadata, preprocessing=model.config.preprocessing)
        self.num_classes = model.config.num_classes
        self._rule = model.rule

    @property
    def postprocess(self) -> dict[str, Any]:
        """The fields of the detector's `SelectionRule` as plain values."""
        return self._rule.to_plain()

    def folded(self, size: tuple[int, int]) -> DenseDetector:
        """Return a folded copy for inputs of one size.

        Raises:
            UserError: a side is not a multiple of the coarsest stride.
        """
        check_side(size, self._detector.config.strides[-1])
        return DenseDetector(self._detector.fold(size)).eval()

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare the detections of each image as sets; see `detection_agreement`."""
        return detection_agreement(self._rule, expected, actual, tolerance=tolerance)


def exportable(model: Detector | LightDetector) -> Exportable:
    """Prepare a detector, which must be in eval mode, for export."""
    if isinstance(model, LightDetector):
        return ExportableDetector(model)
    from iformer.tasks.detection.rcnn_export import ExportableRcnn

    return ExportableRcnn(model)


def quantization(
    model: Detector | LightDetector,
    data: str,
    *,
    size: tuple[int, int] | None = None,
    images: int,
    max_drop: float,
    accuracy_control: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Quantization, list[str]]:
    """Prepare a quantized export: calibrate on training images, measure box AP on validation images.

    For arguments and result see `iformer.tasks.classification.export.quantization`.

    Raises:
        UserError: the network is a Mask R-CNN or Faster R-CNN, or the data cannot be used.
    """
    if not isinstance(model, LightDetector):
        raise UserError("Mask R-CNN and Faster R-CNN are exported in fp32 only; train a light detector for INT8")
    preprocessing = model.config.preprocessing
    size = size or preprocessing.size
    splits = load_as_trained(model.metadata, data, lambda share: load_detection(data, val_split=share))
    chosen = calibration_images(splits.train, splits.val, data, count=images)
    refuse_unknown(model.metadata.class_names, splits.val.class_names)
    val = with_class_order(splits.val, model.metadata.class_names)
    dataset = DetectionImages(val, masks=False, value_range=preprocessing.value_range)

    def measure(forward: Forward) -> dict[str, Any]:
        detector = LetterboxDetector(
            forward, model.rule, size=size, fill=model.config.fill, num_classes=model.config.num_classes
        )
        with build_loader(dataset, batch_size=4, train=False, workers=0) as loader:
            return evaluate(detector, loader).metrics

    options = Quantization(
        images=chosen,
        measure=measure,
        metric=find_task("detect").metric,
        max_drop=max_drop,
        accuracy_control=accuracy_control,
        data=f"{data} (validation)",
        report=report,
    )
    few = few_images_note(len(splits.val), metric=find_task("detect").metric_label, max_drop=max_drop)
    return options, [*splits.warnings, *few]
