"""From images to detections, by a Mask R-CNN or Faster R-CNN, a light detector or an artifact of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from iformer.config.detector import DetectorConfig
from iformer.data.conversion import ValueRange
from iformer.deploy.artifact import ArtifactInfo
from iformer.deploy.exportable import Forward, Outputs
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


class LetterboxDetector(ObjectDetector):
    """Anything that maps letterboxed images to the outputs of a light detector, such as an artifact."""

    def __init__(
        self,
        forward: Forward,
        rule: SelectionRule,
        *,
        size: tuple[int, int],
        fill: tuple[int, int, int],
        num_classes: int,
        name: str = "",
        class_names: tuple[str, ...] = (),
        value_range: ValueRange | None = None,
    ) -> None:
        """`forward` maps uint8 B x 3 x H x W of `size` to the outputs; see `detect_letterboxed` for the rest."""
        self._forward, self._rule, self._size, self._fill = forward, rule, size, fill
        self.detections = rule.detections
        self.name, self.num_classes, self.class_names = name, num_classes, class_names
        self.value_range = value_range

    @classmethod
    def of_artifact(cls, runner: ArtifactRunner) -> LetterboxDetector:
        """Read the record of an artifact.

        Raises:
            UserError: the record does not describe a detector.
        """
        info = runner.info
        expected = (*info.shapes.get(BOXES, ())[:1], info.num_classes)
        try:
            rule = SelectionRule.from_plain(info.postprocess or {})
        except ConfigError as error:
            raise UserError(f"{runner.path}: its record has no rule for detections: {error}") from None
        if info.preprocessing.letterbox is None or info.shapes.get(SCORES) != expected:
            raise UserError(f"{runner.path}: its record does not describe a detector's outputs")
        return cls(
            runner,
            rule,
            size=info.preprocessing.size,
            fill=info.preprocessing.letterbox,
            num_classes=info.num_classes,
            name=info.network,
            class_names=info.class_names,
            value_range=info.preprocessing.value_range,
        )

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        def forward(letterboxed: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self._forward(letterboxed)
            return outputs[BOXES], outputs[SCORES]

        return detect_letterboxed(forward, images, self._size, self._fill, self._rule, min_score=min_score)


Subject = Detector | LightDetector | ArtifactRunner | ObjectDetector
"""A detector that can be evaluated: a network in eval mode, an artifact, or the result of `object_detector`."""


def object_detector(subject: Subject) -> ObjectDetector:
    """Prepare a network in eval mode, or an artifact.

    Raises:
        UserError: the artifact's record does not describe a detector.
    """
    if isinstance(subject, ObjectDetector):
        return subject
    return (
        LetterboxDetector.of_artifact(subject) if isinstance(subject, ArtifactRunner) else NetworkDetector(subject)
    )


def postprocessor(info: ArtifactInfo) -> Callable[[Outputs], Any]:
    """Return the part of `detect` behind an artifact, for images of the input's size; a benchmark times it."""
    rule = SelectionRule.from_plain(info.postprocess or {})

    def detections(outputs: Outputs) -> list[dict[str, Tensor]]:
        return [rule.select(*image) for image in zip(outputs[BOXES], outputs[SCORES], strict=True)]

    return detections
