"""Config of the light one-stage detector. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iformer.config.checking import Range, ShareBelowOne, check
from iformer.config.pyramid import LightConfig, LightOptions

Neck = Literal["pan", "top-down", "none"]
Matching = Literal["aligned", "fixed"]


@dataclass(frozen=True, kw_only=True)
class LightDetectorOptions(LightOptions):
    """The options of the light detector that a recipe may set."""

    neck: Neck = "pan"
    """How the neck mixes levels. "pan": convolutions in a top-down and a bottom-up path (PANet). "top-down": each
    level is added to the next finer one, without convolutions. "none": levels are not mixed."""
    head_depth: Annotated[int, Range(1, 8)] = 2
    """Number of separable convolutions in each tower of a head."""
    extra_level: bool = False
    """Also predict at stride 64, for objects that fill the input."""
    semantic_head: bool = False
    """Train the neck with one more head, which classifies each point; inference leaves this head out."""
    objectness: bool = False
    """Score objects and their classes apart: the score of a class is that of an object times a softmax."""
    matching: Matching = "aligned"
    """Which points learn an object. "aligned": those whose own scores and boxes fit best (TOOD). "fixed": those
    near its centre, on the levels of its size, by the loss of SSD; scores are a softmax over the classes and the
    background."""
    score_threshold: ShareBelowOne = 0.001
    """Detections with a lower score are dropped."""
    detections: Annotated[int, Range(1, 100_000)] = 100
    """Largest number of detections per image."""
    nms: bool = True
    """Take detections from the one-to-many head, with non-maximum suppression. False: take them from the
    one-to-one head, without suppression; this head needs more training to be as good."""
    nms_iou: Annotated[float, Range(0, 1, above=True)] = 0.65
    """Overlap above which non-maximum suppression drops the box with the lower score."""


@dataclass(frozen=True, kw_only=True)
class LightDetectorConfig(LightConfig, LightDetectorOptions):
    """A whole light detector: backbone, light pyramid and heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        coarsest = self.strides[-1]
        fits = all(side % coarsest == 0 for side in self.input_size)
        check(fits, self, "input_size", f"height and width, multiples of {coarsest}")
        both = self.objectness and self.matching == "fixed"
        check(not both, self, "objectness", "False with matching fixed, which scores the background")

    @property
    def has_object_logit(self) -> bool:
        """Whether each point has a logit for "an object" beside those of the classes."""
        return self.objectness or self.matching == "fixed"

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input between two neighbouring points of each level."""
        return (8, 16, 32, 64) if self.extra_level else (8, 16, 32)
