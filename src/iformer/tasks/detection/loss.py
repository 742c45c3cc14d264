"""The training objectives: torchvision's losses for the R-CNNs, `light_loss` for the light detector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.errors import ConfigError
from iformer.models.light_detector import LightDetector
from iformer.tasks.detection.light_loss import light_loss
from iformer.tasks.registry import TASKS
from iformer.training.protocol import Batch

_ROW = TASKS["detect"]


class Detection:
    """The task of training a Mask R-CNN or a Faster R-CNN with torchvision's losses.

    `batch["images"]` is a list of float 3 x H x W from 0 to 1, `batch["targets"]` a list of the dicts that
    `iformer.models.detector.Detector.forward` takes.
    """

    name, primary_metric, metric_label = _ROW.name, _ROW.metric, _ROW.metric_label

    def __init__(self, class_names: tuple[str, ...]) -> None:
        """Create the task.

        Raises:
            ConfigError: `class_names` is empty.
        """
        if not class_names:
            raise ConfigError("class_names is empty; expected one class or more")
        self.class_names = tuple(class_names)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the sum of torchvision's losses of proposals and heads, and each of these losses."""
        losses: dict[str, Tensor] = model(batch["images"], batch["targets"])
        return {"loss": torch.stack(list(losses.values())).sum(), **{k: v.detach() for k, v in losses.items()}}


class LightDetection(Detection):
    """The task of training a `LightDetector` on square canvases, with values from 0 to 1."""

    def __init__(self, class_names: tuple[str, ...], network: LightDetector) -> None:
        """Create the task; `network` is asked for the positions of its points.

        Raises:
            ConfigError: `class_names` is empty.
        """
        super().__init__(class_names)
        self._network = network

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and the losses of the heads; see `light_loss`."""
        images = torch.stack(batch["images"])
        points = self._network.points(images.device, images.shape[2:])
        fixed = self._network.config.matching == "fixed"
        strides = self._network.point_strides(images.device, images.shape[2:]) if fixed else None
        return light_loss(model(images), points, batch["targets"], fixed_strides=strides)
