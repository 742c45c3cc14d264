"""From images to detections, by a Mask R-CNN or Faster R-CNN, a light detector or an artifact of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from iformer.config.detector import DetectorConfig
from iformer.data.conversion import ValueRange
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import ConfigError, UserError
from iformer.models.detections import SelectionRule, detect_letterboxed
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector

BOXES, SCORES = "boxes", "scores"
"""Outputs: B x A x 4 (left, top, right, bottom in pixels of the input) and B x A x K (0 to 1)."""


class ObjectDetector(ABC):
    """A detector ready to answer."""

    name: str
    class_names: tuple[str, ...]
    """One name per class; empty if unknown."""
    num_classes: int
    value_range: ValueRange | None
    """See `iformer.data.images.read_image`."""
    has_masks = False
    detections: int
    """Most detections of an image."""

    @abstractmethod
    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Return the objects on images of any sizes, uint8 3 x h x w; see `iformer.models.detector.Detector`."""


class NetworkDetector(ObjectDetector):
    """A network in eval mode."""

    def __init__(self, network: Detector | LightDetector) -> None:
        config = network.config
        self._network = network
        self.name, self.num_classes = config.backbone.name, config.num_classes
        self.class_names, self.value_range = network.metadata.class_names, config.value_range
        self.has_masks = isinstance(config, DetectorConfig) and config.masks
        self.detections = config.detections

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        return self._network.detect(images, min_score=min_score)


class ArtifactDetector(ObjectDetector):
    """An artifact of a light detector."""

    def __init__(self, runner: ArtifactRunner) -> None:
        """Read the record.

        Raises:
            UserError: the record does not describe a detector.
        """
        info = runner.info
        expected = (*info.shapes.get(BOXES, ())[:1], info.num_classes)
        try:
            self.rule = SelectionRule.from_plain(info.postprocess or {})
        except ConfigError as error:
            raise UserError(f"{runner.path}: its record has no rule for detections: {error}") from None
        if info.preprocessing.letterbox is None or info.shapes.get(SCORES) != expected:
            raise UserError(f"{runner.path}: its record does not describe a detector's outputs")
        self._runner = runner
        self._fill = info.preprocessing.letterbox
        self.name, self.num_classes, self.class_names = info.network, info.num_classes, info.class_names
        self.value_range = info.preprocessing.value_range
        self.detections = self.rule.detections

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        size = self._runner.info.preprocessing.size
        return detect_letterboxed(self.forward, images, size, self._fill, self.rule, min_score=min_score)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the artifact on letterboxed images, uint8 B x 3 x H x W: boxes and scores."""
        outputs = self._runner(images)
        return outputs[BOXES], outputs[SCORES]


def object_detector(subject: Detector | LightDetector | ArtifactRunner) -> ObjectDetector:
    """Prepare a network in eval mode, or an artifact.

    Raises:
        UserError: the artifact's record does not describe a detector.
    """
    return ArtifactDetector(subject) if isinstance(subject, ArtifactRunner) else NetworkDetector(subject)
