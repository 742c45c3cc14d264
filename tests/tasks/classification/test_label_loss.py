"""Losses by name, class weights, and calibration, against their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from iformer import load
from iformer.errors import ConfigError
from iformer.models.factory import build
from iformer.tasks.classification.calibration import (
    BINS,
    calibration_error,
    fit_temperature,
    reliability,
    scale_logits,
)
from iformer.tasks.classification.loss import LabelLoss, balanced_weights, named_weights
from iformer.training.loop import train
from tiny.classification import make_images, tiny_job, tiny_recipe
from tiny.networks import randomize, tiny_config

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 0, 1])


def test_focal_loss() -> None:
    p = LOGITS.softmax(1)[range(6), LABELS]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    loss = LabelLoss(kind="focal", focal_gamma=2.0)
    torch.testing.assert_close(loss(LOGITS, LABELS, label_smoothing=0.0), expected)
    plain = LabelLoss(kind="focal", focal_gamma=0.0)
    smoothed = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(plain(LOGITS, LABELS, label_smoothing=0.1), smoothed)
    soft = functional.one_hot(LABELS, 3).float()
    torch.testing.assert_close(loss(LOGITS, soft, label_smoothing=0.0), expected)


def test_binary_cross_entropy() -> None:
    one_hot = functional.one_hot(LABELS, 3).float()
    p = LOGITS.sigmoid()
    expected = -(one_hot * p.log() + (1 - one_hot) * (1 - p).log()).mean()
    torch.testing.assert_close(LabelLoss(kind="bce")(LOGITS, LABELS, label_smoothing=0.0), expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "bce"])
def test_class_weights_scale_the_loss_of_their_class(kind: str) -> None:
    plain, weighted = LabelLoss(kind=kind), LabelLoss(kind=kind, class_weights=torch.tensor([1.0, 5.0, 1.0]))  # type: ignore[arg-type]
    only = torch.tensor([1, 0])
    logits = LOGITS[:2]
    before = torch.autograd.functional.jacobian(lambda x: plain(x, only, label_smoothing=0.0), logits)
    after = torch.autograd.functional.jacobian(lambda x: weighted(x, only, label_smoothing=0.0), logits)
    if kind == "bce":  # of every image, the output of the class counts more
        ratio_K = after.abs().sum(0) / before.abs().sum(0)
        assert ratio_K.tolist() == pytest.approx([1, 5, 1])
        return
    ratio = (after.abs().sum(1) / before.abs().sum(1)).tolist()
    assert ratio[0] > 2 * ratio[1]


def test_weights_of_classes() -> None:
    weights = balanced_weights([90, 10, 0])
    assert weights.tolist() == pytest.approx([100 / 270, 100 / 30, 0])
    assert named_weights({"b": 2.0}, ("a", "b")).tolist() == [1.0, 2.0]
    with pytest.raises(ConfigError, match=r"recipe\.class_weights has c, which the data has not"):
        named_weights({"c": 2.0}, ("a", "b"))


def test_expected_calibration_error() -> None:
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 50
    assert calibration_error(np.array([0.5, 0.5]), np.array([True, False])) == 0
    # two bins: |0.95 - 1| of 1 image, |0.55 - 0| of 3 images
    gap = (0.05 + 3 * 0.55) / 4
    found = calibration_error(np.array([0.95, 0.55, 0.55, 0.55]), np.array([True, False, False, False]))
    assert found == pytest.approx(100 * gap)
    assert calibration_error(np.empty(0), np.empty(0, bool)) == 0


def test_the_temperature_undoes_overconfidence() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in true])
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    assert fit_temperature(sharp, labels) == pytest.approx(3, rel=0.1)
    assert fit_temperature(true, labels) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("distillation", [False, True])
def test_the_temperature_is_in_the_weights_of_the_head(distillation: bool) -> None:
    model = build(tiny_config(distillation=distillation)).eval()
    randomize(model)
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    scale_logits(model, 2.0)
    torch.testing.assert_close(model(x), before / 2)


def test_a_run_with_temperature_scaling_stores_calibrated_networks(tmp_path: Path) -> None:
    """The same run with and without: the same answers, other probabilities, the smaller loss."""
    images = make_images(tmp_path / "images", 6)
    results = {}
    for scaling in (False, True):
        recipe = tiny_recipe(epochs=1, ema_decay=None, temperature_scaling=scaling)
        job = tiny_job(images, tmp_path / f"run-{scaling}", recipe=recipe)
        randomize(job.model)  # answers with confidence
        results[scaling] = train(job)
    plain, scaled = results[False], results[True]
    assert scaled.metrics["top1"] == plain.metrics["top1"]
    assert scaled.metrics["loss"] < plain.metrics["loss"]
    assert scaled.metrics["ece_uncalibrated"] == plain.metrics["ece"]
    temperature = scaled.metrics["temperature"]
    assert temperature != pytest.approx(1, abs=0.01)
    for name in ("last", "best"):
        before, after = (load(tmp_path / f"run-{scaling}/{name}.safetensors") for scaling in (False, True))
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(after(x), before(x) / temperature, rtol=1e-3, atol=1e-4)
        assert after.metadata.metrics["temperature"] == pytest.approx(temperature, rel=1e-3)
        assert replace(after.metadata, metrics={}, provenance={}).class_names == before.metadata.class_names
    best = tmp_path / "run-True/best.safetensors"
    scaled_once = best.read_bytes()
    train(tiny_job(images, tmp_path / "run-True", recipe=recipe, resume=True))  # only evaluates again
    assert best.read_bytes() == scaled_once


def test_reliability_sorts_answers_into_bins() -> None:
    confidences = np.array([0.05, 0.5, 0.55, 1.0], np.float32)
    found = reliability(confidences, np.array([False, True, False, True]))
    assert found.images.sum() == 4
    assert (found.images[0], found.images[-1]) == (1, 1)
    middle = int(np.ceil(0.5 * BINS)) - 1
    assert found.right[middle : middle + 2].sum() == 1
    assert found.confidence.sum() == pytest.approx(confidences.sum())
    assert found.error == pytest.approx(calibration_error(confidences, np.array([False, True, False, True])))
