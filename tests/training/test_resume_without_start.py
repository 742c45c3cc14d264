"""A resumed run needs its folder and its data, and no file that it started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iformer.cli.main import main
from iformer.config.detector import DetectorConfig
from iformer.models.classifier import Classifier
from iformer.models.detector import Detector
from iformer.models.weights.checkpoint import save
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import stored_network
from tiny.cases import classes, coco
from tiny.networks import tiny_config

RUN = ["--batch-size", "2", "--epochs", "1", "--precision", "fp32", "--weights", "none", "--set", "workers=0"]


def trained_and_resumed(start: Path, out: Path, *options: str) -> None:
    """Train from a checkpoint, remove it, and resume."""
    common = ["--out", str(out), "--no-tensorboard", "--device", "cpu"]
    assert main(["train", "--model", str(start), *common, *RUN, *options]) == 0
    start.unlink()
    assert main(["train", "--resume", *common]) == 0


def test_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(Classifier(tiny_config(num_classes=5, in_chans=1)), tmp_path / "start.safetensors")
    options = ["--data", str(classes(tmp_path / "data", count=4)), "--size", "32", "--set", "drop_path_rate=0.1"]
    trained_and_resumed(tmp_path / "start.safetensors", tmp_path / "run", *options)
    network = stored_network(RunFolder(tmp_path / "run"))
    assert isinstance(network, Classifier)
    assert (network.num_classes, network.config.in_chans, network.config.drop_path_rate) == (2, 1, 0.1)


@pytest.mark.sweep
def test_a_fine_tuned_detector(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    torch.manual_seed(0)
    config = DetectorConfig(
        backbone=tiny_config(num_classes=0), num_classes=1, size=64, max_size=96, fpn_channels=8,
        box_head_channels=8, masks=False, proposals=16,
    )  # fmt: skip
    save(Detector(config), tmp_path / "start.safetensors", class_names=("red",))
    coco(tmp_path / "data", {"train": 2, "val": 1}, names=("red", "blue"))
    options = ["--task", "detect", "--detector", "faster-rcnn", "--data", str(tmp_path / "data"), "--size", "64"]
    options += [argument for field in ("max_size=96", "freeze=none") for argument in ("--set", field)]
    trained_and_resumed(tmp_path / "start.safetensors", tmp_path / "run", *options)


def test_a_state_whose_description_does_not_fit_its_tensors_is_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from iformer.models.weights.header import write_header

    network = Classifier(tiny_config(num_classes=2))
    header = write_header(tiny_config(num_classes=1000), network.metadata, source="")
    files = RunFolder(tmp_path)
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(tensors, files.state, {**header, "format": "iformer-training-2"})
    assert stored_network(files) is None
    save_file(tensors, files.state, {**write_header(network.config, network.metadata, source="")})
    assert isinstance(stored_network(files), Classifier)
