"""Fixed matching of the light detector: which points learn an object, and the loss with a background class."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from iformer.config.light_detector import LightDetectorConfig
from iformer.errors import ConfigError
from iformer.models.light_detector import LightDetector, RawDetections
from iformer.tasks.detection.light_loss import Assignment, PaddedTargets, assign_fixed, background_loss
from tiny.pyramid import backbone_config


def network(**fields: object) -> LightDetector:
    fields = {"input_size": (256, 320), "channels": 16, "head_depth": 1, "matching": "fixed", **fields}
    torch.manual_seed(0)
    return LightDetector(LightDetectorConfig(backbone=backbone_config(), num_classes=3, **fields))  # type: ignore[arg-type]


def test_scores_are_a_softmax_with_the_background() -> None:
    model = network()
    _, scores = model.eval()(torch.rand(1, 3, 256, 320))
    found = model.train()(torch.rand(1, 3, 256, 320)).one_to_many
    assert found.objectness is not None
    expected = torch.cat([found.logits, -found.objectness], 2).softmax(2)
    assert torch.equal(found.scores, expected[..., :3])
    assert torch.equal(found.float().scores, found.scores)
    assert (scores < 0.02).all()  # before training nearly all is background
    assert found.scores.sum(2).max() < 0.05


def test_one_spelling_of_the_scores() -> None:
    with pytest.raises(ConfigError, match="objectness is True; expected False with matching fixed"):
        network(objectness=True)


def test_points_near_the_centre_on_the_levels_of_the_size() -> None:
    """Against loops over points and objects, with the rule as the docstrings give it."""
    model = network(extra_level=True)
    points, strides = model.points(), model.point_strides()
    assert strides.unique(return_counts=True)[1].tolist() == [32 * 40, 16 * 20, 8 * 10, 4 * 5]
    boxes = [(10, 10, 40, 60), (5, 5, 180, 200), (100, 90, 103, 93), (120, 40, 190, 120), (30, 20, 58, 48)]
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([0, 1, 2, 0, 1])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    found = assign_fixed(points, strides, PaddedTargets.stack([target, empty]))
    sizes = [((right - left) * (bottom - top)) ** 0.5 for left, top, right, bottom in boxes]
    learners = []
    for (left, top, right, bottom), size in zip(boxes, sizes, strict=True):
        near, distances = [], {}
        for index, ((x, y), stride) in enumerate(zip(points.T.tolist(), strides.tolist(), strict=True)):
            above = stride == 8 or size > 4 * stride / 1.25
            if above and (stride == 64 or size <= 8 * stride * 1.25):
                dx, dy = abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)
                distances[index] = dx**2 + dy**2
                if dx < (right - left) / 4 and dy < (bottom - top) / 4:
                    near.append(index)
        learners.append({*near, min(distances, key=lambda index: distances[index])})
    assert len(learners[2]) == 1  # no point within: the nearest one
    assert {float(strides[index]) for index in learners[3]} == {8, 16}  # 75 pixels: two levels
    for index in range(points.shape[1]):
        candidates = [number for number, chosen in enumerate(learners) if index in chosen]
        assert bool(found.learns[0, index]) == bool(candidates)
        if candidates:
            assert found.objects[0, index] == min(candidates, key=lambda number: sizes[number])
    assert not found.learns[1].any()
    assert torch.equal(found.quality, found.learns.float())


def test_the_loss_counts_the_hardest_points_without_an_object() -> None:
    torch.manual_seed(0)
    logits, objectness = torch.randn(2, 40, 3), torch.randn(2, 40, 1)
    raw = RawDetections(logits, torch.zeros(2, 40, 4), objectness, with_background=True)
    learns = torch.zeros(2, 40, dtype=torch.bool)
    learns[0, [3, 7]] = True  # and none of the second image
    objects = torch.zeros(2, 40, dtype=torch.int64)
    objects[0, 7] = 1
    boxes = torch.zeros(2, 4)
    targets = PaddedTargets.stack(
        [{"boxes": boxes, "labels": torch.tensor([2, 1])}, {"boxes": boxes[:1], "labels": torch.tensor([0])}]
    )
    joined = torch.cat([logits, -objectness], 2)[0]
    labels = torch.full((40,), 3)
    labels[3], labels[7] = 2, 1
    costs = F.cross_entropy(joined, labels, reduction="none")
    others = costs[[index for index in range(40) if index not in (3, 7)]]
    expected = (costs[3] + costs[7] + others.sort(descending=True).values[:6].sum()) / 2
    found = Assignment(learns, objects, learns.float())
    torch.testing.assert_close(background_loss(raw, found, targets), expected)
