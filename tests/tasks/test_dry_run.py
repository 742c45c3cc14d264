"""Dry runs of detectors and segmenters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from iformer.cli.main import main
from iformer.models.classifier import Classifier
from iformer.models.weights.checkpoint import save
from iformer.training.dry_run import dry_run
from iformer.training.job import TrainJob
from tiny.classification import write_in_two_classes
from tiny.networks import tiny_config
from tiny.pyramid import detection, light, light_segmentation, segmentation


@pytest.mark.parametrize("make", [light, light_segmentation, segmentation, detection])
def test_dry_run_of_dense_networks(make: Callable[..., TrainJob], shapes_data: Path, tmp_path: Path) -> None:
    job = make(shapes_data, tmp_path / "run")
    found = dry_run(job)
    assert (found.train_images, found.val_images, found.steps) == (8, 4, 4)
    assert found.parameters == sum(parameter.numel() for parameter in job.model.parameters())
    assert found.images_per_second > 0
    if make is detection:
        assert found.gmacs is None
    else:
        assert found.gmacs is not None
        assert found.gmacs > 0
    assert found.by_rule == ()
    assert not (tmp_path / "run").exists()


def test_dry_run_of_an_r_cnn_prints_no_operations(
    shapes_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--task", "detect", "--detector", "faster-rcnn", "--data", str(shapes_data)]
    fields = ["--weights", "none", "--size", "64", "--set", "max_size=64", "--batch-size", "2", "--device", "cpu"]
    assert main([*command, *fields, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "M parameters\n" in printed
    assert "GMACs" not in printed
    assert not (tmp_path / "run").exists()


def test_dry_run_of_a_classifier_of_four_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 4), dtype=np.uint8)
    data = write_in_two_classes(tmp_path / "data", pixels)
    save(Classifier(tiny_config(num_classes=2)), tmp_path / "rgb.safetensors", class_names=("a", "b"))
    command = ["train", "--model", str(tmp_path / "rgb.safetensors"), "--data", str(data)]
    fields = ["--set", "in_chans=4", "--size", "32", "--batch-size", "2", "--device", "cpu", "--weights", "none"]
    assert main([*command, *fields, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "GMACs" in capsys.readouterr().out
