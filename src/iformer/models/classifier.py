"""The classifier: backbone, global average pool and head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from iformer.config.network import NetworkConfig
from iformer.layers.heads import Head
from iformer.models.backbone import Backbone, init_weights


class Classifier(Backbone):
    """Images, B x in_chans x H x W, to class logits, B x K, with timm's methods for features and heads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.head: nn.Module = nn.Identity()
        self._set_head(config.num_classes, distillation=config.distillation)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a head."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the pooled features."""
        return self.config.channels[-1]

    @property
    def head_hidden_size(self) -> int:
        """Channels of the input of the head."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Map B x in_chans x H x W to the last feature map, B x C x H/32 x W/32, not pooled."""
        return self.feature_maps(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Map the last feature map to logits, B x K, or with `pre_logits` to pooled features, B x C.

        In training mode a distilled network returns two logits: for the labels and for the teacher.
        """
        x_BC = x.mean((2, 3))
        return x_BC if pre_logits else self.head(x_BC)

    def forward(self, x: Tensor) -> Any:
        """Map B x in_chans x H x W to logits, B x K; see `forward_head` for distilled networks in training."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, *, distillation: bool | None = None) -> None:
        """Replace the head by a randomly initialised one; 0 classes remove it. None keeps `distillation`."""
        if distillation is None:
            distillation = self.config.distillation
        self.config = self.config.with_options(num_classes=num_classes, distillation=distillation)
        self._set_head(num_classes, distillation=distillation)

    def _set_head(self, num_classes: int, *, distillation: bool) -> None:
        like = next(self.parameters())
        head = (
            nn.Identity()
            if num_classes == 0
            else Head(self.num_features, num_classes, distillation=distillation, norm=self.config.norm)
        )
        head.apply(init_weights)
        self.head = head.to(device=like.device, dtype=like.dtype).train(self.training)
