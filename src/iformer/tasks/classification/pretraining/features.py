"""Feature distillation: the network, its frozen teacher, and the loss between their features.

Pooled features and feature maps are compared by their cosine similarity, after a learned projection from the
student's channels to the teacher's. Each channel of the teacher is scaled to mean 0 and variance 1 before the
comparison, because features behind a ReLU are otherwise all similar to their mean.

Shape letters: B batch, C channels of a stage, D channels of the teacher, L feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.config.network import STRIDES
from iformer.config.preprocessing import Preprocessing
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.tasks.classification.teacher import FrozenNetwork, TeacherSource
from iformer.tasks.registry import TASKS
from iformer.training.protocol import Batch

_ROW = TASKS["pretrain"]
_PROBE_SIDE = 128
"""Side, in pixels, of the image with which the shapes of a teacher's feature maps are measured, unless the teacher
takes only one size."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A feature map of the teacher that a stage of the student learns."""

    index: int
    """The index of the map among the feature maps of the teacher, from 0."""
    stage: int
    """The stage of the student, from 0."""
    channels: int
    """Number of channels of the teacher's map."""


class FeatureTeacher(FrozenNetwork):
    """A frozen network that computes features of the student's batches.

    Each stage of the student learns the last feature map of the teacher that has about the stride of the stage. A
    stage for which the teacher has no such map learns no map.
    """

    def __init__(self, source: TeacherSource, *, name: str, student: Preprocessing) -> None:
        """Freeze a network and find its feature maps.

        Raises:
            UserError: the network gives no feature maps of the student's strides.
        """
        super().__init__(source.network, source.preprocessing, student=student, fixed_size=source.fixed_size)
        if not hasattr(self.network, "forward_intermediates"):
            raise UserError(f"the teacher {name} gives no feature maps; choose another network of timm")
        height, width = source.fixed_size or (_PROBE_SIDE, _PROBE_SIDE)
        with torch.no_grad():
            pooled_BD, maps = self._features(torch.zeros(1, len(source.preprocessing.mean), height, width), None)
        self.channels: int = pooled_BD.shape[1]
        """Number of channels (D) of the teacher's pooled features."""
        self.levels = _levels([(height / map_.shape[2], map_.shape[1]) for map_ in maps])
        if not self.levels:
            raise UserError(f"the teacher {name} has no feature map of stride 4 to 32; choose another network")

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return pooled features, fp32 B x D, and the maps of `levels`, fp32 B x D x H x W, without gradient."""
        with torch.no_grad():
            pooled_BD, maps = self._features(self.inputs(images), [level.index for level in self.levels])
        return pooled_BD.float(), [map_.float() for map_ in maps]

    def _features(self, images: Tensor, indices: list[int] | None) -> tuple[Tensor, list[Tensor]]:
        network: Any = self.network
        last, maps = network.forward_intermediates(images, indices=indices, norm=True)
        if hasattr(network, "forward_head"):
            return network.forward_head(last, pre_logits=True), maps
        return last.mean((2, 3)), maps


def _levels(maps: Sequence[tuple[float, int]]) -> tuple[Level, ...]:
    """Return the teacher's feature map for each stage, chosen from the strides and channels of all its maps."""
    chosen: dict[int, Level] = {}
    for index, (stride, channels) in enumerate(maps):
        stage = min(range(len(STRIDES)), key=lambda stage: abs(STRIDES[stage] - stride))
        if 0.7 < stride / STRIDES[stage] < 1.4:  # a map of stride 14 is learned by the stage of stride 16
            chosen[stage] = Level(index=index, stage=stage, channels=channels)
    return tuple(chosen[stage] for stage in sorted(chosen))


class ProjectedNetwork(nn.Module):
    """A network with learned projections from its features to the features of a teacher."""

    def __init__(self, network: Classifier, *, channels: int, levels: Sequence[Level]) -> None:
        """Wrap a network; `channels` and `levels` describe the features of the teacher."""
        super().__init__()
        self.network = network
        self.stages = tuple(level.stage for level in levels)
        self.pooled = nn.Linear(network.num_features, channels)
        self.dense = nn.ModuleList(
            nn.Conv2d(network.config.channels[level.stage], level.channels, 1) for level in levels
        )
        self.pooled_statistics = nn.BatchNorm1d(channels, affine=False)
        self.dense_statistics = nn.ModuleList(nn.BatchNorm2d(level.channels, affine=False) for level in levels)

    def forward(self, images: Tensor, pooled_BD: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Compare the features of a batch with the teacher's.

        Args:
            images: B x 3 x H x W, normalised.
            pooled_BD: the teacher's pooled features.
            maps: the teacher's feature maps, each B x D x H x W.

        Returns:
            Mean cosine similarities, -1 to 1: one of the pooled features, then one of each map; fp32 (1 + L).
        """
        own = self.network.feature_maps(images)
        projected_BD = self.pooled(own[-1].mean((2, 3)))
        similarities = [_similarity(projected_BD, self._standard(self.pooled_statistics, pooled_BD))]
        for stage, project, norm, map_ in zip(self.stages, self.dense, self.dense_statistics, maps, strict=True):
            projected = project(own[stage])
            if projected.shape[2:] != map_.shape[2:]:
                projected = functional.interpolate(projected, map_.shape[2:], mode="bilinear")
            similarities.append(_similarity(projected, self._standard(norm, map_)))
        return torch.stack(similarities)

    def _standard(self, norm: nn.Module, features: Tensor) -> Tensor:
        """Return features scaled to mean 0 and variance 1 per channel, by statistics of the batches so far."""
        if self.training:
            norm(features)  # adds the batch to the statistics
        statistics: Any = norm
        return functional.batch_norm(features, statistics.running_mean, statistics.running_var)


def _similarity(own: Tensor, features: Tensor) -> Tensor:
    return functional.cosine_similarity(own.float(), features, dim=1).mean()


class FeatureDistillation:
    """The task of pretraining: learn features with a high cosine similarity to the features of a teacher."""

    name = _ROW.name
    primary_metric, metric_label = _ROW.headline()
    class_names: tuple[str, ...] = ()

    def __init__(self, teacher: FeatureTeacher, *, dense_weight: float) -> None:
        """Create the task; `dense_weight` is the weight of the feature maps in the loss, 0 to 1."""
        self.teacher, self.dense_weight = teacher, dense_weight

    def similarity(self, similarities: Tensor) -> Tensor:
        """Return the mean of the similarities of a `ProjectedNetwork`; maps have the weight `dense_weight`."""
        return (1 - self.dense_weight) * similarities[0] + self.dense_weight * similarities[1:].mean()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, 1 - cosine similarity, and `cosine`, the cosine similarity in percent."""
        images = batch["images"]
        similarity = self.similarity(model(images, *self.teacher(images)))
        return {"loss": 1 - similarity, "cosine": 100 * similarity.detach()}
