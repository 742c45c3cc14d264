"""`iformer train` on the command line: shards, a teacher, and the dry run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from iformer.cli.main import main
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.models.weights.resolve import load
from tiny.classification import tiny_config

QUICK = [
    *("--recipe", "quickstart", "--epochs", "1", "--batch-size", "16", "--size", "32", "--precision", "fp32"),
    *("--set", "workers=0", "--set", "cache=none", "--no-tensorboard", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert main(["convert", str(images), str(out), "--to", "shards"]) == 0
    return out


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "teacher.safetensors"
    save(build(tiny_config()), path, class_names=("blue", "green", "red"))
    return path


def test_packed_images_are_described_and_verified(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["info", str(shards), "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == {"train": 48, "val": 12}
    assert found["verified"] is True
    path = shards / "val-00000.tar"
    contents = path.read_bytes()
    path.write_bytes(contents.replace(b"IDAT", b"IDAX", 1))
    try:
        assert main(["info", str(shards), "--verify"]) == 1
        assert "differs from the index (1 image)" in capsys.readouterr().err
    finally:
        path.write_bytes(contents)
    assert main(["info", str(tmp_path)]) == 1
    assert "holds no tar shards" in capsys.readouterr().err
    assert main(["convert", str(shards), str(tmp_path / "x"), "--to", "shards", "--half"]) == 2


def test_a_folder_that_is_not_empty_is_refused_before_the_images_are_read(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(images), str(images), "--to", "shards"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not an empty folder" in line


def test_teacher_option_and_resume_with_another_teacher(
    shards: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--data", str(shards), "--out", str(out), "--teacher", str(teacher), *QUICK]
    assert main(command) == 0
    network = load(out / "last.safetensors")
    assert network.config.name == "iformer_t_distilled"
    assert network.metadata.provenance["recipe"]["distillation"]["loss"] == "hard"
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    epoch = next(record for record in records if record["event"] == "epoch")
    assert epoch["train_loss"] == pytest.approx(
        0.5 * epoch["train_label_loss"] + 0.5 * epoch["train_teacher_loss"], abs=1e-5
    )
    capsys.readouterr()
    save(build(tiny_config()), teacher, class_names=("blue", "green", "red"))  # other weights
    assert main(["train", "--resume", "--out", str(out), "--no-tensorboard", "--device", "cpu"]) == 1
    assert "teacher was" in capsys.readouterr().err


def test_teacher_of_other_classes_stops_before_anything_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(build(tiny_config(num_classes=4)), tmp_path / "other.safetensors", class_names=("a", "b", "c", "d"))
    out = tmp_path / "run"
    command = ["train", "--data", str(images), "--out", str(out), "--teacher", str(tmp_path / "other.safetensors")]
    assert main([*command, *QUICK]) == 1
    error = capsys.readouterr().err
    assert "has 4 classes, the data has 3; train a teacher on this data" in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_dry_run_estimates_the_run_and_writes_nothing(
    images: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--data", str(images), "--out", str(out), "--teacher", str(teacher), *QUICK]
    assert main([*command, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert found["parameters"] == sum(p.numel() for p in load_plain().parameters())
    assert found["steps"] == 3
    assert found["train_images"] == 48
    assert found["images_per_second"] > 0
    assert found["memory_bytes"] > 2**26
    assert 0 <= found["data_wait"] <= 1
    slow, fast = found["by_rule"]
    assert slow["hours"] > fast["hours"] > 0
    assert main([*command, "--dry-run"]) == 0
    assert "by rule" not in capsys.readouterr().out, "a run of minutes needs no server"
    assert main([*command, "--dry-run", "--epochs", "1000000"]) == 0
    assert "on 8 x A100 by rule" in capsys.readouterr().out


def load_plain() -> torch.nn.Module:
    from iformer import create_model

    return create_model("iformer_t_distilled", num_classes=3)


def test_dry_run_of_a_recipe_for_many_gpus_fits_on_a_cpu(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["--set", "size=32", "--set", "workers=0", "--precision", "fp32", "--device", "cpu"]
    command = ["train", "--data", str(images), "--model", "iformer_t", "--recipe", "imagenet-300", *fields]
    assert main([*command, "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batch_size"], found["measured_batch"]) == (4096, 64)


def test_dry_run_finds_a_full_disk(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from iformer.training import dry_run

    class Full:
        free = 1000

    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: Full)
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *QUICK, "--dry-run"]) == 1
    assert "MiB for its checkpoints, 0 MiB are free there" in capsys.readouterr().err


def test_dry_run_finds_a_folder_that_cannot_be_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *QUICK, "--dry-run"]) == 1
    assert "cannot be written: no right to write into" in capsys.readouterr().err
