"""Mask R-CNN and Faster R-CNN with an input and outputs of fixed sizes, for export.

Shape letters: B batch, D detections of an image, K classes, M the side of a mask, H and W the sides of the input.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.deploy.exportable import Agreement, Limits, Outputs
from iformer.models.detections import SelectionRule
from iformer.models.detector import Detector
from iformer.models.folding import fold
from iformer.tasks.detection.inference import BOXES, MASKS, SCORES, detection_agreement
from iformer.tasks.export import check_side

_STRIDE = 32
LIMITS = Limits(
    runtimes=("onnx",),
    precisions=("fp32",),
    reason="the number of regions that it computes depends on the image, and this runtime wants fixed shapes; "
    "train a light detector (--detector light)",
    batch=1,
    traced=True,
    ordered=False,
)


class FixedRcnn(nn.Module):
    """An R-CNN for normalised images of one size, B x 3 x H x W.

    Returns boxes, B x D x 4 (pixels of the input); scores, B x D x K (0 except at the class of the detection);
    and, for a Mask R-CNN, masks, B x D x M x M (0 to 1, inside the boxes). If fewer than D objects are found, the
    other rows are zeros.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.rcnn = detector.rcnn
        self.detections, self.num_classes = detector.config.detections, detector.config.num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = [self._one(images[index : index + 1]) for index in range(images.shape[0])]
        return tuple(torch.cat(values) for values in zip(*found, strict=True))

    def _one(self, image: Tensor) -> tuple[Tensor, ...]:
        size = (int(image.shape[2]), int(image.shape[3]))
        maps = self.rcnn.backbone(image)
        proposals, _ = self.rcnn.rpn(ImageList(image, [size]), maps)
        found = self.rcnn.roi_heads(maps, proposals, [size])[0][0]
        # torchvision's label 0 is the background
        classes = torch.arange(1, self.num_classes + 1, device=image.device)
        scores_NK = found["scores"][:, None] * (found["labels"][:, None] == classes).to(found["scores"].dtype)
        outputs = [found["boxes"], scores_NK]
        if "masks" in found:
            outputs.append(found["masks"][:, 0])
        return tuple(self._filled(value)[None] for value in outputs)

    def _filled(self, rows: Tensor) -> Tensor:
        """Return D rows: the given rows, then rows of zeros."""
        zeros = torch.zeros((self.detections, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        return torch.cat([rows, zeros])[: self.detections]


class ExportableRcnn:
    """A Mask R-CNN or Faster R-CNN with the interface `iformer.deploy.exportable.Exportable`.

    The artifact's images are letterboxed into its input, so its metrics differ a little from the metrics of
    the checkpoint, which resizes each image by its shorter side.
    """

    class_logits = None
    channels = 3
    limits = LIMITS

    def __init__(self, model: Detector) -> None:
        """Wrap a detector that is in eval mode."""
        config = model.config
        self.model = FixedRcnn(model)
        self.name, self.num_classes = config.backbone.name, config.num_classes
        self.outputs = (BOXES, SCORES, MASKS) if config.masks else (BOXES, SCORES)
        side = max(_STRIDE, round(config.size / _STRIDE) * _STRIDE)
        red, green, blue = (min(255, max(0, round(255 * value))) for value in config.mean)
        self.metadata: Metadata = replace(
            model.metadata,
            preprocessing=Preprocessing(
                size=(side, side),
                crop_pct=1.0,
                interpolation="bilinear",
                mean=config.mean,
                std=config.std,
                value_range=config.value_range,
                letterbox=(red, green, blue),
            ),
        )
        self._rule = SelectionRule(score_threshold=config.score_threshold, detections=config.detections)

    @property
    def postprocess(self) -> dict[str, Any]:
        """The fields of the detector's `SelectionRule` as plain values."""
        return self._rule.to_plain()

    def folded(self, size: tuple[int, int]) -> FixedRcnn:
        """Return a copy with a folded backbone, for inputs of one size.

        Raises:
            UserError: a side is not a multiple of 32.
        """
        check_side(size, _STRIDE)
        folded = copy.deepcopy(self.model).eval().requires_grad_(False)
        folded.rcnn.backbone.body = fold(folded.rcnn.backbone.body)
        return folded

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare the detections of each image as sets, with their masks; see `detection_agreement`."""
        found = detection_agreement(self._rule, expected, actual, tolerance=tolerance)
        if found.metrics["compared_detections"]:
            return found
        nothing = "nothing is detected on the images, so nothing was compared; give --images that show objects"
        return replace(found, failures=(*found.failures, nothing))
