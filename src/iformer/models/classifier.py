"""The classifier: backbone, global average pool and head."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.errors import UserError
from iformer.layers.heads import Head
from iformer.models.backbone import Backbone, init_weights

GlobalPool = Literal["avg", ""]
"""Kind of pool: "avg" is the global average, "" is no pool, which only a network without a head can have."""


class Classifier(Backbone):
    """Classifier of images, B x in_chans x H x W to logits B x K, with timm's methods for features and heads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.global_pool: GlobalPool = "avg"
        self.distilled_training = False
        self.head: nn.Module = nn.Identity()
        self._set_head(config.num_classes, distillation=config.distillation)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a head."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the last feature map and of the pooled features."""
        return self.config.channels[len(self.stages) - 1]

    @property
    def head_hidden_size(self) -> int:
        """Channels of the input of the head."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Map B x in_chans x H x W to the last feature map, B x C x H/32 x W/32, not pooled."""
        return self.feature_maps(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Map the last feature map to logits, B x K, or with `pre_logits` to pooled features, B x C.

        In training mode, after `set_distilled_training`, a distilled network returns two logits: for the labels
        and for the teacher.
        """
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Any:
        """Map B x in_chans x H x W to logits, B x K; see `forward_head` for distilled networks in training."""
        return self.forward_head(self.forward_features(x))

    def set_distilled_training(self, enable: bool = True) -> None:
        """Set whether a distilled network in training mode returns both heads' outputs instead of their mean.

        The training loop of this package turns this on. Loops of other libraries get the mean of both heads, which
        trains both.
        """
        self.distilled_training = enable
        if isinstance(self.head, Head):
            self.head.distilled_training = enable

    def get_classifier(self) -> nn.Module:
        """Return the head; without classes an `nn.Identity`."""
        return self.head

    def reset_classifier(
        self, num_classes: int, global_pool: GlobalPool | None = None, *, distillation: bool | None = None
    ) -> None:
        """Replace the head by a randomly initialised head.

        The class names and metrics in `metadata` were those of the old head, and are removed. The provenance
        stays: it tells where the other weights are from.

        Args:
            num_classes: number of classes. 0: remove the head.
            global_pool: "avg", or with 0 classes also "": the network returns the last feature map. None: "avg" if
                there are classes, else the current pool.
            distillation: whether the head has two classifiers. None: the current setting.

        Raises:
            UserError: `global_pool` is unknown, or is "" although there are classes; or `num_classes` is invalid.
        """
        if distillation is None:
            distillation = self.config.distillation
        config = self.config.with_options(num_classes=num_classes, distillation=distillation)
        pool = self.global_pool if num_classes == 0 else "avg"
        self.global_pool = _checked_pool(pool if global_pool is None else global_pool, num_classes)
        self.config = config
        self._set_head(num_classes, distillation=distillation)
        before = self.metadata
        self.metadata = Metadata(
            task=before.task, preprocessing=before.preprocessing, provenance=before.provenance
        )

    def set_global_pool(self, global_pool: GlobalPool) -> None:
        """Set the pool and keep the head; see `reset_classifier`.

        Raises:
            UserError: `global_pool` is unknown, or is "" although there are classes.
        """
        self.global_pool = _checked_pool(global_pool, self.num_classes)

    def remove_head(self) -> None:
        """Remove the head and the pool before it."""
        self.reset_classifier(0, "")

    def _set_head(self, num_classes: int, *, distillation: bool) -> None:
        like = next(self.parameters())
        head = (
            nn.Identity()
            if num_classes == 0
            else Head(self.num_features, num_classes, distillation=distillation, norm=self.config.norm)
        )
        head.apply(init_weights)
        self.head = head.to(device=like.device, dtype=like.dtype).train(self.training)
        self.set_distilled_training(self.distilled_training)


def _checked_pool(global_pool: GlobalPool, num_classes: int) -> GlobalPool:
    if global_pool not in ("avg", ""):
        raise UserError(f"global_pool is {global_pool!r}; expected 'avg', or '' for no pool")
    if num_classes and global_pool == "":
        raise UserError(f"global_pool '' is for num_classes=0; got {num_classes} classes")
    return global_pool
