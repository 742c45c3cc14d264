"""The light detector: its canvases, its assignment, its loss, and that it learns."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from iformer.config.light_detector import LightDetectorConfig, Neck
from iformer.data.sources.detection import load_detection
from iformer.errors import ConfigError
from iformer.models.detections import SelectionRule
from iformer.models.light_detector import LightDetector, RawDetections, TrainingOutputs
from iformer.models.pyramid import LightNeck
from iformer.models.weights.checkpoint import save
from iformer.models.weights.resolve import load
from iformer.tasks.detection.augment import Canvas
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.detection.dataset import DetectionCanvases
from iformer.tasks.detection.evaluate import evaluate_data, evaluate_set
from iformer.tasks.detection.inference import detection_agreement
from iformer.tasks.detection.light_loss import PaddedTargets, assign, light_loss, semantic_loss
from iformer.tasks.detection.loss import LightDetection
from iformer.tasks.detection.predict import DetectionPredictor, open_predictor
from iformer.tasks.interface import EvaluateOptions, PredictOptions
from iformer.training.loop import train
from tiny import dense
from tiny.networks import randomize
from tiny.pyramid import backbone_config, light


def network(**fields: object) -> LightDetector:
    config = LightDetectorConfig(
        backbone=backbone_config(), num_classes=3, channels=16, head_depth=1, **{"input_size": (64, 96), **fields}
    )  # type: ignore[arg-type]
    torch.manual_seed(0)
    return LightDetector(config)


@pytest.mark.parametrize(
    ("extra_level", "neck"), [(False, "pan"), (True, "pan"), (True, "top-down"), (True, "none")]
)
def test_outputs_follow_the_points(extra_level: bool, neck: str) -> None:
    model = network(extra_level=extra_level, neck=neck, input_size=(64, 128)).eval()
    points = model.points()
    expected = sum((64 // stride) * (128 // stride) for stride in model.config.strides)
    assert points.shape == (2, expected)
    boxes, scores = model(torch.rand(2, 3, 64, 128))
    assert boxes.shape == (2, expected, 4)
    assert scores.shape == (2, expected, 3)
    # distances are positive, so a point lies inside its box
    assert (boxes[..., :2] < points.T).all()
    assert (boxes[..., 2:] > points.T).all()


def test_scores_of_objects_are_shared_by_the_classes() -> None:
    model = network(objectness=True)
    _, scores = model.eval()(torch.rand(2, 3, 64, 96))
    assert ((scores.sum(2) - 0.01).abs() < 0.002).all()  # the score of an object before training
    found = model.train()(torch.rand(2, 3, 64, 96)).one_to_many
    assert found.objectness.shape == (*found.logits.shape[:2], 1)
    assert torch.equal(found.scores, found.objectness.sigmoid() * found.logits.softmax(2))


@pytest.mark.parametrize(("neck", "coarser"), [("pan", True), ("top-down", True), ("none", False)])
@torch.no_grad()
def test_a_neck_mixes_levels(neck: Neck, coarser: bool) -> None:
    torch.manual_seed(0)
    module = LightNeck([4, 6, 8], 16, paths=neck).eval()
    maps = [torch.rand(1, channels, side, side) for channels, side in zip((4, 6, 8), (8, 4, 2), strict=True)]
    before = module(maps)
    assert [x.shape for x in before] == [(1, 16, side, side) for side in (8, 4, 2)]
    # does the finest output change with the coarsest map, and the coarsest output with the finest map?
    assert torch.equal(before[0], module([*maps[:2], maps[2] + 1])[0]) != coarser
    assert torch.equal(before[2], module([maps[0] + 1, *maps[1:]])[2]) != (neck == "pan")
    if neck == "top-down":
        finest, middle, coarsest = _without_paths(module)(maps)
        sums = middle + F.interpolate(coarsest, scale_factor=2.0)
        assert torch.equal(before[1], sums)
        assert torch.equal(before[0], finest + F.interpolate(sums, scale_factor=2.0))


def _without_paths(neck: LightNeck) -> LightNeck:
    plain = copy.copy(neck)
    plain.paths = "none"
    return plain


@pytest.mark.parametrize(
    ("nms", "residual", "options"),
    [
        (True, False, {"neck": "top-down"}),
        (False, False, {"matching": "fixed"}),
        (True, True, {"objectness": True}),
        (True, False, {"neck": "none", "matching": "fixed"}),
    ],
)
@torch.no_grad()
def test_folding_changes_nothing(nms: bool, residual: bool, options: dict[str, object]) -> None:
    options = {"residual": residual, "semantic_head": residual, **options}
    model = network(nms=nms, **options).eval()
    randomize(model)
    images = torch.rand(2, 3, 64, 96)
    folded = model.fold()
    assert (folded.one_to_many is None, folded.one_to_one is None) == (not nms, nms)
    assert folded.semantic is None
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for one, other in zip(model(images), folded(images), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_a_checkpoint_is_the_network(tmp_path: Path) -> None:
    model = network().eval()
    save(model, tmp_path / "light.safetensors", class_names=("a", "b", "c"))
    loaded = load(tmp_path / "light.safetensors")
    assert isinstance(loaded, LightDetector)
    assert loaded.config == model.config
    images = [torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)]
    for name, value in model.detect(images)[0].items():
        assert torch.equal(value, loaded.eval().detect(images)[0][name])


@pytest.mark.parametrize("size", [(40, 200), (300, 30), (64, 96), (1, 1)])
def test_boxes_come_back_to_the_image(size: tuple[int, int]) -> None:
    found = network(nms=False).eval().detect([torch.zeros(3, *size, dtype=torch.uint8)])[0]
    assert len(found["scores"]) == 100
    assert (found["scores"].diff() <= 0).all()
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= torch.tensor([size[1], size[0]] * 2)).all()


def test_non_maximum_suppression_leaves_no_overlap() -> None:
    from torchvision.ops import box_iou

    images = [torch.zeros(3, 64, 96, dtype=torch.uint8)]
    found = network(nms_iou=0.3).eval().detect(images)[0]
    assert 0 < len(found["scores"]) < len(network(nms=False).eval().detect(images)[0]["scores"])
    for label in range(3):
        boxes = found["boxes"][found["labels"] == label]
        assert (box_iou(boxes, boxes).fill_diagonal_(0) <= 0.3 + 1e-4).all()


def grid_points() -> Tensor:
    return network().points()


def assigned(
    scores_AK: Tensor, boxes_A4: Tensor, points_2A: Tensor, target: dict[str, Tensor], *, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The points of one image that learn an object, that object and the quality of each."""
    found = assign(scores_AK[None], boxes_A4[None], points_2A, PaddedTargets.stack([target]), topk=topk)
    learning = found.learns[0].nonzero().flatten()
    return learning, found.objects[0, learning], found.quality[0, learning]


def test_one_to_one_gives_each_object_its_best_point() -> None:
    points = grid_points()
    boxes = torch.cat([points.T - 12, points.T + 12], 1)
    target = {"boxes": torch.tensor([[4.0, 4, 28, 28], [40, 30, 64, 54]]), "labels": torch.tensor([0, 2])}
    scores = torch.full((points.shape[1], 3), 0.3)
    learning, objects, quality_P = assigned(scores, boxes, points, target, topk=1)
    assert sorted(objects.tolist()) == [0, 1]
    for point, index, quality in zip(learning, objects, quality_P, strict=True):
        overlap = _iou(boxes[point], target["boxes"][index])
        assert overlap == max(_iou(box, target["boxes"][index]) for box in boxes)
        assert quality == pytest.approx(overlap)


def test_one_to_many_takes_points_inside_only() -> None:
    points = grid_points()
    boxes = torch.cat([points.T - 12, points.T + 12], 1)
    target = {"boxes": torch.tensor([[0.0, 0, 40, 40]]), "labels": torch.tensor([1])}
    learning, _, quality = assigned(torch.full((points.shape[1], 3), 0.3), boxes, points, target, topk=10)
    assert len(learning) == 10
    assert (points[:, learning] < 40).all()
    assert 0 < quality.min() <= quality.max() <= 1


def test_an_object_smaller_than_a_cell_has_a_point() -> None:
    points = grid_points()
    target = {"boxes": torch.tensor([[33.0, 33, 34, 34]]), "labels": torch.tensor([0])}
    boxes = torch.zeros(points.shape[1], 4)
    learning, _, _ = assigned(torch.full((points.shape[1], 3), 0.1), boxes, points, target, topk=10)
    assert len(learning) == 1


def test_two_objects_never_share_a_point() -> None:
    points = grid_points()
    boxes = torch.cat([points.T - 12, points.T + 12], 1)
    same = torch.tensor([[4.0, 4, 28, 28], [5.0, 4, 29, 28]])
    scores = torch.full((points.shape[1], 3), 0.5)
    target = {"boxes": same, "labels": torch.tensor([0, 1])}
    learning, objects, _ = assigned(scores, boxes, points, target, topk=10)
    assert len(set(learning.tolist())) == len(learning)
    assert set(objects.tolist()) == {0, 1}


def test_images_of_a_batch_do_not_affect_each_other() -> None:
    points = grid_points()
    boxes = torch.cat([points.T - 12, points.T + 12], 1)
    scores = torch.full((points.shape[1], 3), 0.5)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    one = {"boxes": torch.tensor([[4.0, 4, 28, 28]]), "labels": torch.tensor([2])}
    two = {"boxes": torch.tensor([[4.0, 4, 28, 28], [40, 30, 64, 54]]), "labels": torch.tensor([0, 2])}
    together = assign(
        scores.repeat(3, 1, 1), boxes.repeat(3, 1, 1), points, PaddedTargets.stack([none, two, one]), topk=5
    )
    assert not together.learns[0].any()
    assert not together.quality[0].any()
    for index, target in ((1, two), (2, one)):
        learning, objects, quality = assigned(scores, boxes, points, target, topk=5)
        assert together.learns[index].nonzero().flatten().tolist() == learning.tolist()
        assert together.objects[index, learning].tolist() == objects.tolist()
        torch.testing.assert_close(together.quality[index, learning], quality)


def test_predicted_boxes_without_area_have_a_finite_loss() -> None:
    """Two images with one and two objects: the first one's padding has no area either."""
    points = grid_points()
    boxes = torch.cat([points, points]).T.repeat(2, 1, 1).requires_grad_()
    logits = torch.zeros(2, points.shape[1], 3, requires_grad=True)
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 28, 28]]), "labels": torch.tensor([0])},
        {"boxes": torch.tensor([[4.0, 4, 28, 28], [40, 30, 64, 54]]), "labels": torch.tensor([0, 2])},
    ]
    raw = RawDetections(logits, boxes)
    losses = light_loss(TrainingOutputs(raw, raw), points, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    losses["loss"].backward()
    for tensor in (logits, boxes):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_a_perfect_prediction_costs_less_than_a_wrong_one() -> None:
    points = grid_points()
    target = [{"boxes": torch.tensor([[4.0, 4, 28, 28]]), "labels": torch.tensor([0])}]
    right = torch.tensor([4.0, 4, 28, 28]).repeat(points.shape[1], 1)[None]
    logits = torch.full((1, points.shape[1], 3), -8.0)
    inside = int(((points - 16).abs().sum(0)).argmin())
    logits[0, inside, 0] = 8.0
    good = RawDetections(logits, right)
    bad = RawDetections(logits.flip(2), right + 40)
    assert light_loss(TrainingOutputs(good, good), points, target)["one_boxes"] < 1e-5
    better, worse = (light_loss(TrainingOutputs(raw, raw), points, target) for raw in (good, bad))
    assert better["loss"] < worse["loss"]


def test_with_objectness_objects_and_classes_cost_apart() -> None:
    points = grid_points()
    target = [{"boxes": torch.tensor([[4.0, 4, 28, 28]]), "labels": torch.tensor([0])}]
    right = torch.tensor([4.0, 4, 28, 28]).repeat(points.shape[1], 1)[None]
    inside = int(((points - 16).abs().sum(0)).argmin())

    def cost(object_logit: float, elsewhere: float, label: int) -> float:
        objectness = torch.full((1, points.shape[1], 1), elsewhere)
        objectness[0, inside] = object_logit
        logits = torch.full((1, points.shape[1], 3), -4.0)
        logits[..., label] = 4.0
        raw = RawDetections(logits, right, objectness)
        return float(light_loss(TrainingOutputs(raw, raw), points, target)["one_classes"])

    good = cost(8.0, -8.0, 0)
    assert good < 0.1
    for worse in (cost(-8.0, -8.0, 0), cost(8.0, 0.0, 0), cost(8.0, -8.0, 1)):
        assert worse > good + 1


@pytest.mark.parametrize("objectness", [False, True])
def test_outputs_in_half_precision_cost_what_they_cost_in_fp32(objectness: bool) -> None:
    """The best point of each object is the same: its score is not rounded before the assignment."""
    points = grid_points()
    target = [{"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([0])}]
    boxes = torch.tensor([4.0, 4, 60, 60]).repeat(points.shape[1], 1)[None]
    torch.manual_seed(0)
    logits = (6 + torch.rand(1, points.shape[1], 3)).bfloat16()
    half = RawDetections(logits, boxes, logits[..., :1] if objectness else None)
    costs = [light_loss(TrainingOutputs(raw, raw), points, target) for raw in (half, half.float())]
    assert costs[0] == costs[1]


def test_points_in_an_object_learn_its_class() -> None:
    """Right logits cost nothing; the smaller of two objects wins; corners of a box and the rest are background."""
    model = network(semantic_head=True)
    boxes = torch.tensor([[0.0, 0, 64, 64], [16, 16, 32, 32]])
    targets = PaddedTargets.stack([{"boxes": boxes, "labels": torch.tensor([0, 2])}])
    goals = []
    for stride in (8, 16):
        goal = torch.full((64 // stride, 96 // stride), 3)
        for row in range(goal.shape[0]):
            for column in range(goal.shape[1]):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                if ((x - 32) / 32) ** 2 + ((y - 32) / 32) ** 2 < 0.9:
                    goal[row, column] = 0
                if ((x - 24) / 8) ** 2 + ((y - 24) / 8) ** 2 < 0.9:
                    goal[row, column] = 2
        goals.append(goal)
    assert [int(goal[0, 0]) for goal in goals] == [3, 3]
    assert {0, 2, 3} <= set(goals[0].flatten().tolist())
    right = [20 * torch.nn.functional.one_hot(goal, 4).permute(2, 0, 1)[None].float() for goal in goals]
    assert semantic_loss(right, model.points(), targets) < 1e-6
    for index, goal in enumerate(goals):
        for point in goal.flatten().unique():
            wrong = [logits.clone() for logits in right]
            row, column = (goal == point).nonzero()[0]
            wrong[index][0, :, row, column] = wrong[index][0, :, row, column].roll(1)
            assert semantic_loss(wrong, model.points(), targets) > 0.01


@pytest.mark.parametrize("options", [{}, {"semantic_head": True}, {"objectness": True}, {"matching": "fixed"}])
def test_images_without_objects_have_a_finite_loss_with_gradients(options: dict[str, object]) -> None:
    model = network(**options).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    batch = {"images": list(torch.rand(2, 3, 64, 96)), "targets": [empty, empty]}
    loss = LightDetection(("a", "b", "c"), model).loss(model, batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_boxes_follow_the_pixels_of_a_canvas() -> None:
    """A white rectangle on black: the box must be the rectangle, wherever and however large it is pasted."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 20:40, 30:60] = 255
    item = (image, {"boxes": torch.tensor([[30.0, 20, 60, 40]]), "labels": torch.tensor([2])})
    canvas = Canvas((96, 128), (0.5, 1.5), (0, 0, 0))
    seen = 0
    for seed in range(40):
        random.seed(seed)
        pixels, target = canvas.mosaic([item] * 4) if seed % 2 else canvas.single(item)
        assert pixels.shape == (3, 96, 128)
        for box in target["boxes"]:
            left, top, right, bottom = (round(value) for value in box.tolist())
            inner = pixels[0, top + 1 : bottom - 1, left + 1 : right - 1].float()
            assert inner.numel() == 0 or inner.mean() > 240
            seen += 1
        if not seed % 2 and len(target["boxes"]):
            rows, columns = (pixels[0] > 127).nonzero(as_tuple=True)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (found - target["boxes"][0]).abs().max() <= 1.0
    assert seen > 40


def test_canvases_of_a_scheduled_size_show_the_same(shapes_data: Path) -> None:
    recipe = DetectionRecipe.from_plain(
        {"network": "light", "epochs": 4, "lr": 0.1, "size": 96, "size_schedule": [[0, 64], [1, 96]], "hflip": 0.0}
    )
    canvases = DetectionCanvases(load_detection(shapes_data, workers=1).train, recipe, fill=(0, 0, 0))
    for index in range(4):
        small, large = canvases.batch([(0, index)]), canvases.batch([(1, index)])
        assert [batch["images"][0].shape[1:] for batch in (small, large)] == [(64, 64), (96, 96)]
        boxes = [batch["targets"][0]["boxes"] / side for batch, side in ((small, 64), (large, 96))]
        torch.testing.assert_close(*boxes)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.sweep),
        pytest.param({"objectness": True}, marks=pytest.mark.full),
        pytest.param({"matching": "fixed"}, marks=pytest.mark.full),
    ],
)
def test_it_overfits_eight_images(options: dict[str, object], shapes_data: Path, tmp_path: Path) -> None:
    fields: dict[str, object] = {"epochs": 60, "warmup_epochs": 3, "hflip": 0.0, "eval_every": 60}
    fields |= {"ema_decay": 0.9, "light": {"channels": 32, "head_depth": 1, **options}}
    result = train(light(shapes_data, tmp_path / "run", memorise=True, fields=fields, report=True))
    assert result.metrics["box_ap50"] > 95
    report = (tmp_path / "run" / "report.md").read_text()
    assert report.count("predictions.png") == 1
    assert float(report.partition("all classes counted as one, box AP is ")[2].partition(" %")[0]) > 60


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"network": "light", "size": 100}, "recipe.size is 100"),
        ({"augment": {"mosaic": 0.5}}, "recipe.augment"),
        ({"size": 96, "size_schedule": [[0, 64]]}, "recipe.size_schedule"),
        ({"network": "light", "size": 96, "size_schedule": [[0, 80]]}, "recipe.size_schedule"),
        ({"network": "light", "size": 96, "size_schedule": [[0, 128]]}, "recipe.size_schedule"),
        ({"network": "light", "size": 64, "augment": {"scale_jitter": [2, 1]}}, "recipe.augment.scale_jitter"),
    ],
)
def test_recipes_that_cannot_work(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
        DetectionRecipe.from_plain({"task": "detect", "epochs": 1, "lr": 0.1, **fields})


def _iou(one: Tensor, other: Tensor) -> float:
    from torchvision.ops import box_iou

    return float(box_iou(one[None], other[None]))


def test_predictions_come_from_a_folded_copy() -> None:
    model = dense.light_detector().eval()
    randomize(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8))
    folded = open_predictor(model, PredictOptions(device=torch.device("cpu"), min_score=0.0)).answer(image)
    expected = DetectionPredictor(model, min_score=0.0).answer(image)
    assert len(expected["scores"])
    torch.testing.assert_close(folded["scores"], expected["scores"], atol=1e-4, rtol=1e-4)
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)], "the network itself is unchanged"


def test_evaluations_come_from_a_folded_copy(shapes_data: Path) -> None:
    model = dense.light_detector()
    calls: list[int] = []
    model.pyramid.body.register_forward_hook(lambda *_: calls.append(1))  # a folded copy has another body
    expected = evaluate_set(model, load_detection(str(shapes_data)).val, workers=0)
    assert len(calls) == 1
    options = EvaluateOptions(device=torch.device("cpu"), workers=0)
    found, _ = evaluate_data(model, str(shapes_data), options)
    assert len(calls) == 1
    assert len(found.results) == len(expected.results) > 10
    scores = [[result["score"] for result in evaluation.results] for evaluation in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert found.box_ap == pytest.approx(expected.box_ap, abs=1e-3)
    folded, _ = evaluate_data(model.fold(), str(shapes_data), options)
    assert folded.metrics == found.metrics


def test_an_artifact_agrees_where_scores_are_nearly_equal() -> None:
    """As after a first epoch: the suppression may then keep another one of two boxes."""
    corners = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(0)) * 40
    boxes = torch.cat([corners, corners + 40], dim=2)
    rule = SelectionRule(score_threshold=0.001, detections=20, nms_iou=0.65)
    rising = torch.linspace(0, 1e-6, 60)[None, :, None]
    expected, actual = {"boxes": boxes, "scores": 0.01 + rising}, {"boxes": boxes, "scores": 0.01 - rising}
    kept = [rule.select(outputs["boxes"][0], outputs["scores"][0])["boxes"] for outputs in (expected, actual)]
    assert len(kept[0]) != len(kept[1]) or not torch.equal(*kept)
    found = detection_agreement(rule, expected, actual, tolerance=1e-3)
    assert found.metrics["compared_detections"] > 0
    assert found.failures == ()
    for wrong in ({**actual, "boxes": boxes + 1}, {**actual, "scores": actual["scores"] + 0.002}):
        (failure,) = detection_agreement(rule, expected, wrong, tolerance=1e-3).failures
        assert "have no counterpart" in failure
