"""Mask R-CNN and Faster R-CNN of torchvision, on an iFormer backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from iformer.config.detector import DetectorConfig
from iformer.config.metadata import Metadata
from iformer.models.backbone import Backbone
from iformer.models.finite import finite_outputs
from iformer.models.pyramid import Pyramid

_LEVELS = ("0", "1", "2", "3")
_BOX_SIDE, _MASK_SIDE = 7, 14


class Detector(nn.Module):
    """Detector of boxes, classes and, with `config.masks`, masks of objects on images of any sizes."""

    def __init__(self, config: DetectorConfig, backbone: Backbone | None = None) -> None:
        """Build the network on `backbone` (None: a random one), with random heads."""
        super().__init__()
        self.config = config
        self.metadata = Metadata(task="detect", preprocessing=config.preprocessing)
        self.rcnn = _rcnn(config, Pyramid(backbone or Backbone(config.backbone), config.fpn_channels, pooled=True))
        self.rcnn.transform = _Transform(config.size, config.max_size, list(config.mean), list(config.std))

    @property
    def pyramid(self) -> Pyramid:
        """The backbone and its pyramid."""
        pyramid = self.rcnn.backbone
        assert isinstance(pyramid, Pyramid)
        return pyramid

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Compute losses in training mode, detections otherwise.

        Args:
            images: RGB from 0 to 1, each 3 x H x W with its own H and W. The network normalises and resizes them,
                so that training and inference cannot differ.
            targets: in training mode, for each image `boxes` (float, N x 4: left, top, right, bottom in pixels),
                `labels` (int64, N, from 0) and with masks `masks` (uint8, N x H x W). N may be 0.

        Returns:
            In training mode a dict of scalar losses. Otherwise for each image a dict of `boxes` (N x 4, pixels),
            `scores` (N, descending), `labels` (N, from 0) and with masks `masks` (N x 1 x H x W, 0 to 1).
        """
        if self.training:
            if targets is not None:  # torchvision's label 0 is the background
                targets = [{**target, "labels": target["labels"] + 1} for target in targets]
            return self.rcnn(images, targets)
        return [
            {**found, "masks": found["masks"].stacked()} if "masks" in found else found
            for found in self._detections(images)
        ]

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[Tensor],
        *,
        min_score: float = 0.0,
        detections: int | None = None,
        nms_iou: float | None = None,
        require_finite: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the detections of `forward` in eval mode, with masks that take memory only when they are read.

        Args:
            images: uint8 3 x H x W on any device, each with its own H and W.
            min_score: detections with a lower score are dropped before their masks are computed. The config's
                `score_threshold` applies too.
            detections: largest number of detections per image; None: the config's.
            nms_iou: overlap above which the box with the lower score is dropped, class by class; None:
                torchvision's 0.5.
            require_finite: check that the outputs of all heads are finite. Otherwise torchvision drops boxes and
                scores that are not.

        Returns:
            For each image a dict of `boxes`, `scores`, `labels` and with masks `masks`, a `PastedMasks`.

        Raises:
            DataError: `require_finite` is set, and an output is NaN or infinite.
        """
        device = next(self.parameters()).device
        check = finite_outputs(*self._output_layers()) if require_finite else nullcontext()
        with self._limits(min_score, detections, nms_iou), check:
            return self._detections([image.to(device).float().div_(255) for image in images])

    def _output_layers(self) -> list[nn.Module]:
        """Return the layers that compute scores, boxes and masks, of the proposals and of the detections."""
        heads = self.rcnn.roi_heads
        modules = (self.rcnn.rpn.head, heads.box_predictor, heads.mask_predictor)
        layers = (layer for module in modules if module is not None for layer in module.modules())
        return [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]

    def _detections(self, images: list[Tensor]) -> list[dict[str, Any]]:
        detections: list[dict[str, Any]] = []
        for image, found in zip(images, self.rcnn(images), strict=True):
            detections.append({**found, "labels": found["labels"] - 1})
            if "masks" in found:
                height, width = image.shape[1:]
                detections[-1]["masks"] = PastedMasks(found["masks"], found["boxes"], (height, width))
        return detections

    @contextmanager
    def _limits(self, min_score: float, detections: int | None, nms_iou: float | None) -> Iterator[None]:
        """Apply the limits that are arguments of `detect` to the heads while the block runs."""
        heads = self.rcnn.roi_heads
        before = heads.score_thresh, heads.detections_per_img, heads.nms_thresh
        # torchvision keeps scores above its threshold, in fp32
        heads.score_thresh = max(before[0], float(np.nextafter(np.float32(min_score), np.float32(-1))))
        heads.detections_per_img = before[1] if detections is None else detections
        heads.nms_thresh = before[2] if nms_iou is None else nms_iou
        try:
            yield
        finally:
            heads.score_thresh, heads.detections_per_img, heads.nms_thresh = before


class PastedMasks(Sequence[Tensor]):
    """Masks of the detections of one image, each 1 x H x W (0 to 1) and pasted into the image only when read.

    Hundreds of pasted masks of a large photograph would take gigabytes.
    """

    def __init__(self, maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        """Store masks that are not pasted yet.

        Args:
            maps: N x 1 x M x M, each mask stretched over its box.
            boxes: N x 4: left, top, right, bottom in pixels.
            size: height and width of the image.
        """
        self.maps, self.boxes, self.size = maps, boxes, size

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> PastedMasks: ...
    def __getitem__(self, index: int | slice) -> Tensor | PastedMasks:
        if isinstance(index, slice):
            return PastedMasks(self.maps[index], self.boxes[index], self.size)
        mask: Tensor = paste_masks_in_image(self.maps[index][None], self.boxes[index][None], self.size)[0]
        return mask

    def cpu(self) -> PastedMasks:
        """Return the same masks on the CPU."""
        return PastedMasks(self.maps.cpu(), self.boxes.cpu(), self.size)

    def stacked(self) -> Tensor:
        """Return all masks, N x 1 x H x W."""
        return torch.stack(list(self)) if len(self) else self.maps.new_zeros((0, 1, *self.size))


class _Transform(GeneralizedRCNNTransform):
    """torchvision's transform, but masks stay maps inside their boxes, and thin images keep one pixel per side."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = min(self.min_size[0] / min(height, width), self.max_size / max(height, width))
        thin = scale * min(height, width) < 1.01  # torchvision rounds down, in fp32
        self.fixed_size = (max(1, int(scale * width)), max(1, int(scale * height))) if thin else None
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if not self.training:
            for found, size, original in zip(result, image_shapes, original_image_sizes, strict=True):
                found["boxes"] = resize_boxes(found["boxes"], size, original)
        return result


def _anchors() -> AnchorGenerator:
    """Return anchors for each of the five levels: a square of side 8 x stride and two rectangles of its area."""
    return AnchorGenerator(sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=((0.5, 1.0, 2.0),) * 5)


def _rcnn(config: DetectorConfig, pyramid: Pyramid) -> FasterRCNN | MaskRCNN:
    channels = config.fpn_channels
    box_channels = config.box_head_channels
    # without `num_classes`, torchvision takes the given predictors
    options: dict[str, Any] = {
        "min_size": config.size,
        "max_size": config.max_size,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "rpn_anchor_generator": _anchors(),
        "rpn_pre_nms_top_n_train": 2 * config.proposals,
        "rpn_pre_nms_top_n_test": config.proposals,
        "rpn_post_nms_top_n_train": config.proposals,
        "rpn_post_nms_top_n_test": config.proposals,
        "box_roi_pool": MultiScaleRoIAlign(list(_LEVELS), _BOX_SIDE, sampling_ratio=2),
        "box_head": TwoMLPHead(channels * _BOX_SIDE**2, box_channels),
        "box_predictor": FastRCNNPredictor(box_channels, config.num_classes + 1),
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": config.rois,
    }
    if not config.masks:
        return FasterRCNN(pyramid, **options)
    mask_channels = config.mask_head_channels
    return MaskRCNN(
        pyramid,
        mask_roi_pool=MultiScaleRoIAlign(list(_LEVELS), _MASK_SIDE, sampling_ratio=2),
        mask_head=MaskRCNNHeads(channels, [mask_channels] * config.mask_head_depth, 1),
        mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, config.num_classes + 1),
        **options,
    )
