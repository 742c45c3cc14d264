"""Mask R-CNN and Faster R-CNN of torchvision, on an iFormer backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from iformer.config.detector import DetectorConfig
from iformer.config.metadata import Metadata
from iformer.models.backbone import Backbone
from iformer.models.pyramid import Pyramid

_LEVELS = ("0", "1", "2", "3")
_BOX_SIDE, _MASK_SIDE = 7, 14


class Detector(nn.Module):
    """Boxes, classes and, with `config.masks`, masks of objects on images of any sizes."""

    def __init__(self, config: DetectorConfig, backbone: Backbone | None = None) -> None:
        """Build the network; `backbone` None is a random one, and the heads are random."""
        super().__init__()
        self.config = config
        self.metadata = Metadata(task="detect", preprocessing=config.preprocessing)
        self.rcnn = _rcnn(config, Pyramid(backbone or Backbone(config.backbone), config.fpn_channels, pooled=True))

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
        if targets is not None:  # torchvision's label 0 is the background
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        result = self.rcnn(images, targets)
        if self.training:
            return result
        return [{**found, "labels": found["labels"] - 1} for found in result]

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return what `forward` returns in eval mode, for uint8 images 3 x H x W on any device."""
        device = next(self.parameters()).device
        found: list[dict[str, Tensor]] = self([image.to(device).float().div_(255) for image in images])
        return found


def _anchors() -> AnchorGenerator:
    """Return anchors of eight times the stride on each of the five levels, in three shapes."""
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
