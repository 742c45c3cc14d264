"""`--resume` from another working directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from iformer.cli.main import main
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from tiny.classification import CLASSES, tiny_config

QUICK = [
    *("--epochs", "1", "--batch-size", "16", "--size", "32", "--precision", "fp32", "--weights", "none"),
    *("--set", "workers=0", "--no-tensorboard", "--device", "cpu"),
]


@pytest.mark.parametrize("version", ["this", "old"])
def test_relative_paths_are_found_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Of the data, the network and the teacher; a run of an old version does not say where it was started."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(images, home / "photos")
    (elsewhere / "photos" / "train" / "other").mkdir(parents=True)  # of the same name, and not the data
    for seed, name in enumerate(("network", "teacher")):
        torch.manual_seed(seed)
        save(build(tiny_config()), home / f"{name}.safetensors", class_names=CLASSES)
    monkeypatch.chdir(home)
    names = ["--data", "photos", "--model", "network.safetensors", "--teacher", "teacher.safetensors"]
    assert main(["train", "--out", "runs/a", *names, *QUICK]) == 0
    metrics = json.loads((home / "runs/a/metrics.json").read_text())["metrics"]
    config = home / "runs/a/config.yaml"
    settings = yaml.safe_load(config.read_text())
    assert settings.pop("working_directory") == str(home)
    if version == "old":
        config.write_text(yaml.safe_dump(settings))
        shutil.rmtree(elsewhere / "photos")
    (home / "runs/a/metrics.json").unlink()
    monkeypatch.chdir(elsewhere)
    assert main(["train", "--out", str(home / "runs/a"), "--resume", "--no-tensorboard", "--device", "cpu"]) == 0
    assert json.loads((home / "runs/a/metrics.json").read_text())["metrics"] == metrics


def test_another_network_is_still_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        save(build(tiny_config()), tmp_path / f"{name}.safetensors", class_names=CLASSES)
    command = ["train", "--out", "run", "--data", str(images), *QUICK]
    assert main([*command, "--model", "one.safetensors"]) == 0
    capsys.readouterr()
    assert main([*command, "--model", str(tmp_path / "two.safetensors"), "--resume"]) == 1
    assert "model was one.safetensors" in capsys.readouterr().err
