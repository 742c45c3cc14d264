"""A one-stage detector for phones: `LightPyramid`, and a decoupled depthwise head on each level.

Boxes are regressed directly as distances to the four sides, as in FCOS (Tian et al. 2019, arXiv 1904.01355).
Two heads are trained on the same features (consistent dual assignment; YOLOv10, Wang et al. 2024, arXiv
2405.14458, section 3.1): the one-to-many head gives many positive points to an object and teaches the features;
the one-to-one head gives each object one point, so its detections need no non-maximum suppression. It learns more
slowly, so detections come from the one-to-many head unless the config says otherwise.

With `objectness` the score of a class is the score of an object times a softmax over the classes (objectness and
conditional class probabilities; YOLOv2, Redmon and Farhadi 2017, arXiv 1612.08242). Without it, each class has a
separate score. With fixed matching the scores are one softmax over the classes and the background, as in SSD (Liu
et al. 2016, arXiv 1512.02325).

With `semantic_head` a third head classifies the points of the finest levels during training: a semantic branch as
in Hybrid Task Cascade (Chen et al. 2019, arXiv 1901.07518, section 3.3). An object has few positive points in the
other heads and hundreds in this one, which teaches the features classes in far fewer steps.

Shape letters: B batch, A points over all levels, K classes, H and W the sides of the network's input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iformer.config.light_detector import LightDetectorConfig
from iformer.config.metadata import Metadata
from iformer.models.backbone import Backbone
from iformer.models.detections import SelectionRule, detect_letterboxed
from iformer.models.finite import check_finite
from iformer.models.folding import fold
from iformer.models.pyramid import LightPyramid, SeparableConv, fold_norms

_PRIOR = 0.01
"""Score of every point before training, so that the many points without an object do not swamp the first steps."""
SEMANTIC_LEVELS = 2
"""Number of levels with a semantic head, counted from the finest level."""
_MAX_LOG_DISTANCE = 6.0
"""Largest distance from a point to a side of its box, as the natural logarithm of a number of strides."""


@dataclass(frozen=True)
class RawDetections:
    """Outputs of one head at all points of all levels."""

    logits: Tensor
    """Class logits, B x A x K."""
    boxes: Tensor
    """Boxes, B x A x 4: left, top, right, bottom in pixels of the input."""
    objectness: Tensor | None = None
    """Objectness logits, B x A x 1. None: each class has a separate score."""
    with_background: bool = False
    """Whether the scores are one softmax over the classes and the background, whose logit is -`objectness`."""

    @property
    def scores(self) -> Tensor:
        """Scores of the classes from 0 to 1, B x A x K."""
        if self.objectness is None:
            return self.logits.sigmoid()
        if self.with_background:
            return self.background_logits.softmax(2)[..., :-1]
        return self.objectness.sigmoid() * self.logits.softmax(2)

    @property
    def background_logits(self) -> Tensor:
        """Logits of the classes and, last, of the background, B x A x (K + 1)."""
        assert self.objectness is not None
        return torch.cat([self.logits, -self.objectness], 2)

    def float(self) -> RawDetections:
        """Return the outputs in fp32."""
        objectness = None if self.objectness is None else self.objectness.float()
        return RawDetections(self.logits.float(), self.boxes.float(), objectness, self.with_background)

    def check_finite(self) -> None:
        """Check the logits and boxes; a sigmoid maps infinite logits to 0 and 1.

        Raises:
            DataError: a value is NaN or infinite.
        """
        check_finite(self.boxes, self.logits, *([] if self.objectness is None else [self.objectness]))


class TrainingOutputs(NamedTuple):
    """Outputs of a `LightDetector` in training mode."""

    one_to_many: RawDetections
    one_to_one: RawDetections
    semantic: tuple[Tensor, ...] = ()
    """Class logits for s = 8 and 16, B x (K + 1) x H/s x W/s, background last. Empty without a semantic head."""


class LevelHead(nn.Module):
    """Head of one level: class logits and log-distances, each from a separate tower of convolutions.

    Shape: B x C x h x w to B x K x h x w and B x 4 x h x w. The logit of the objectness is a fifth channel beside
    the distances: the tower that finds the sides of an object knows best whether there is one.
    """

    def __init__(self, config: LightDetectorConfig) -> None:
        super().__init__()
        channels = config.channels

        def tower() -> list[nn.Module]:
            return [
                SeparableConv(channels, channels, kernel_size=config.kernel_size, residual=config.residual)
                for _ in range(config.head_depth)
            ]

        self.classes = nn.Sequential(*tower(), nn.Conv2d(channels, config.num_classes, 1))
        self.distances = nn.Sequential(*tower(), nn.Conv2d(channels, 5 if config.has_object_logit else 4, 1))
        prior = -math.log((1 - _PRIOR) / _PRIOR)
        class_bias = 0.0 if config.has_object_logit else prior
        for tail, bias in ((self.classes[-1], class_bias), (self.distances[-1], 1.0)):
            assert isinstance(tail, nn.Conv2d)
            assert tail.bias is not None
            nn.init.normal_(tail.weight, std=0.01)
            nn.init.constant_(tail.bias, bias)
        if config.has_object_logit:
            nn.init.constant_(self.distances[-1].bias[4:], prior)  # type: ignore[index]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(x), self.distances(x)


class LightHead(nn.Module):
    """Head with one `LevelHead` per level, whose outputs are joined to logits and boxes of all points."""

    def __init__(self, config: LightDetectorConfig) -> None:
        super().__init__()
        self.strides, self.has_object_logit = config.strides, config.has_object_logit
        self.with_background = config.matching == "fixed"
        self.levels = nn.ModuleList(LevelHead(config) for _ in config.strides)

    def fix_points(self, size: tuple[int, int]) -> None:
        """Store points as constants for inputs of `size` (height, width): some runtimes cannot compute them."""
        for stride in self.strides:
            points = level_points(size[0] // stride, size[1] // stride, stride, device=torch.device("cpu"))
            self.register_buffer(f"points{stride}", points, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> RawDetections:
        """Map feature maps, B x C x H/s x W/s, finest first, to logits and boxes of every point."""
        logits, boxes, objectness = [], [], []
        for x, stride, level in zip(maps, self.strides, self.levels, strict=True):
            classes, log_distances = level(x)
            logits.append(classes.flatten(2))
            if self.has_object_logit:
                objectness.append(log_distances[:, 4:].flatten(2))
                log_distances = log_distances[:, :4]
            # in fp32: 8 bits of a bf16 distance would be off by pixels
            reach = log_distances.float().clamp(max=_MAX_LOG_DISTANCE).exp().flatten(2) * stride
            points = getattr(self, f"points{stride}", None)
            if points is None:
                points = level_points(x.shape[2], x.shape[3], stride, device=x.device, dtype=reach.dtype)
            boxes.append(torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1))
        return RawDetections(
            logits=torch.cat(logits, 2).transpose(1, 2),
            boxes=torch.cat(boxes, 2).transpose(1, 2),
            objectness=torch.cat(objectness, 2).transpose(1, 2) if objectness else None,
            with_background=self.with_background,
        )


class LightDetector(nn.Module):
    """Detector of boxes, classes and scores of objects on letterboxed images."""

    def __init__(self, config: LightDetectorConfig, backbone: Backbone | None = None) -> None:
        """Build the network on `backbone` (None: a random one), with a random neck and random heads."""
        super().__init__()
        self.config = config
        self.metadata = Metadata(task="detect", preprocessing=config.preprocessing)
        self.pyramid = LightPyramid(
            backbone or Backbone(config.backbone),
            config.channels,
            kernel_size=config.kernel_size,
            residual=config.residual,
            extra_level=config.extra_level,
            paths=config.neck,
        )
        self.one_to_many: LightHead | None = LightHead(config)
        self.one_to_one: LightHead | None = LightHead(config)
        self.semantic: nn.ModuleList | None = None
        if config.semantic_head:
            classes = config.num_classes + 1
            self.semantic = nn.ModuleList(nn.Conv2d(config.channels, classes, 1) for _ in range(SEMANTIC_LEVELS))

    @property
    def head(self) -> LightHead:
        """The head that detections come from."""
        head = self.one_to_many if self.config.nms else self.one_to_one
        assert head is not None
        return head

    def forward(self, images: Tensor) -> Any:
        """Map letterboxed images, B x 3 x H x W, RGB from 0 to 1, to boxes and scores.

        H and W must be multiples of the coarsest stride.

        Returns:
            In training mode `TrainingOutputs`. In eval mode a tuple of boxes, B x A x 4 in pixels of the input,
            and scores, B x A x K from 0 to 1.
        """
        maps = self._maps(images)
        if self.training:
            assert self.one_to_many is not None
            assert self.one_to_one is not None
            # the one-to-one head learns from the features and does not shape them (YOLOv10)
            one_to_one = self.one_to_one([x.detach() for x in maps])
            semantic = tuple(head(x) for head, x in zip(self.semantic or (), maps, strict=False))
            return TrainingOutputs(self.one_to_many(maps), one_to_one, semantic)
        found = self.head(maps)
        return found.boxes, found.scores

    def _maps(self, images: Tensor) -> list[Tensor]:
        self.pyramid.body.check_input(images)
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.config.mean, self.config.std))
        maps: list[Tensor] = self.pyramid((images - mean) / std)
        return maps

    def fold(self, size: tuple[int, int] | None = None) -> LightDetector:
        """Return a folded copy in eval mode: norms merged into convolutions, without the heads that are not used.

        Args:
            size: height and width of the copy's inputs. None: any size.
        """
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        folded.pyramid.body = fold(folded.pyramid.body)
        folded.semantic = None
        if self.config.nms:
            folded.one_to_one = None
        else:
            folded.one_to_many = None
        fold_norms(folded.pyramid.neck)
        fold_norms(folded.head)
        if size is not None:
            folded.head.fix_points(size)
        return folded

    def points(self, device: torch.device | str = "cpu", size: Sequence[int] | None = None) -> Tensor:
        """Return the centres of all cells, 2 x A (x and y in pixels of the input), in the order of the outputs.

        Args:
            device: where to compute them.
            size: height and width of the input in pixels. None: the config's.
        """
        height, width = size or self.config.input_size
        device = torch.device(device)
        return torch.cat([level_points(height // s, width // s, s, device=device) for s in self.config.strides], 1)

    def point_strides(self, device: torch.device | str = "cpu", size: Sequence[int] | None = None) -> Tensor:
        """Return the stride of each of the `points`, float A."""
        height, width = size or self.config.input_size
        counts = [((height // s) * (width // s), float(s)) for s in self.config.strides]
        return torch.cat([torch.full((count,), stride, device=device) for count, stride in counts])

    @property
    def rule(self) -> SelectionRule:
        """Rule that selects detections from the network's outputs."""
        config = self.config
        return SelectionRule(
            score_threshold=config.score_threshold,
            detections=config.detections,
            nms_iou=config.nms_iou if config.nms else None,
        )

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[Tensor],
        *,
        min_score: float = 0.0,
        rule: SelectionRule | None = None,
        require_finite: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Return the objects detected in images of any sizes; the network must be in eval mode.

        Args:
            images: uint8 3 x h x w, RGB, each of its own size.
            min_score: detections with a lower score are dropped; the rule's `score_threshold` applies too.
            rule: rule that selects the detections. None: `self.rule`.
            require_finite: check that the network's outputs are finite.

        Returns:
            See `iformer.models.detections.detect_letterboxed`.

        Raises:
            DataError: `require_finite` is set, and a logit or box is NaN or infinite.
        """
        config = self.config
        device = next(self.parameters()).device

        def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
            found = self.head(self._maps(images_BCHW.to(device).float().div_(255)))
            if require_finite:
                found.check_finite()
            return found.boxes, found.scores

        chosen = self.rule if rule is None else rule
        return detect_letterboxed(forward, images, config.input_size, config.fill, chosen, min_score=min_score)


def level_points(
    height: int, width: int, stride: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the centres of a level's cells, 2 x (height * width): x and y in pixels of the input."""
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) * stride
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) * stride
    return torch.stack([x.repeat(height), y.repeat_interleave(width)])
