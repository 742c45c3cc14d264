"""`iformer train` and `iformer eval` on the command line."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from iformer.cli.main import main
from iformer.models.weights.resolve import load
from iformer.tasks.registry import load_recipe
from iformer.training import loop

QUICK = [
    *("--recipe", "quickstart", "--epochs", "1", "--batch-size", "16", "--size", "32", "--precision", "fp32"),
    *("--set", "workers=0", "--set", "cache=none", "--no-tensorboard", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("commands") / "run"
    assert main(["train", "--data", str(images), "--out", str(out), *QUICK]) == 0
    return out


def test_train_writes_a_network_that_loads(run: Path) -> None:
    network = load(run / "last.safetensors")
    assert network.config.name == "iformer_t"
    assert network.metadata.class_names == ("blue", "green", "red")
    assert (run / "report.md").is_file()
    recipe = yaml.safe_load((run / "config.yaml").read_text())["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["size"], recipe["workers"]) == (1, 16, 32, 0)


def test_train_in_windows(images: Path, tmp_path: Path) -> None:
    windows = ("--attention", "chunk_hybrid", "--windows", "paper")
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *QUICK, *windows]) == 0
    stage = load(tmp_path / "run" / "last.safetensors").config.stages[2]
    assert stage.windows is not None
    assert (stage.windows.global_blocks, stage.windows.channel_chunks) == (1, 16)


def test_resume_needs_no_settings_and_prints_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--out", str(run), "--json", "--no-tensorboard", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert set(result["metrics"]) >= {"top1", "loss", "per_class", "confusion"}
    assert result["report"] == str(run / "report.md")
    assert Path(result["last"]).is_file()


def test_an_image_that_vanishes_during_training_ends_it_with_what_to_do(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(images, tmp_path / "data"))
    finish = loop._Run.finish_epoch

    def finish_epoch(run: Any, epoch: int) -> None:
        finish(run, epoch)
        next((data / "train" / "red").glob("*.png")).unlink()

    monkeypatch.setattr(loop._Run, "finish_epoch", finish_epoch)
    given = ["--data", str(data), "--out", str(tmp_path / "run"), *QUICK, "--epochs", "2"]
    assert main(["train", *given]) == 1
    said = capsys.readouterr().err
    assert f"stopped; --resume continues the run in {tmp_path / 'run'}, once the data is as it was" in said
    assert "no such file" in said


def test_resume_with_other_settings_names_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--out", str(run), "--lr", "5", "--device", "cpu"]) == 1
    lr = load_recipe("quickstart").lr
    assert f"recipe.lr was {lr:g}, is 5.0" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(run), "--val-split", "0.35", "--device", "cpu"]) == 1
    assert "val_split is 0.35, and the run in" in capsys.readouterr().err


def test_eval_says_what_training_said(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(run / "last.safetensors"), "--data", str(images), "--workers", "0", "--device", "cpu"]
    assert main([*command, "--batch-size", "5", "--json", "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    trained = json.loads((run / "metrics.json").read_text())["metrics"]
    assert result["metrics"]["confusion"] == trained["confusion"]
    assert result["metrics"]["loss"] == pytest.approx(trained["loss"], abs=1e-5)
    predictions = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 12
    right = sum(row["label"] == row["predicted"] for row in predictions)
    assert 100 * right / 12 == pytest.approx(result["metrics"]["top1"], abs=1e-3)
    assert main(command) == 0
    assert "top-1" in capsys.readouterr().out
    assert main([*command, "--out", str(run)]) == 1
    assert "holds a training run, and its metrics.json would be replaced" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["metrics"] == trained


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--recipe", "quickstrat"], "did you mean quickstart"),
        (["--set", "batchsize=3", "--weights", "none"], "did you mean batch_size"),
        (["--task", "pose"], "unknown task 'pose'"),
        (["--weights", "none", "--model", "iformer_tt"], "did you mean iformer_t"),
        (["--lr", "-1"], "recipe.lr is -1.0"),
        (["--weights", "missing.safetensors"], "missing.safetensors"),
        (["--resume", "--overwrite"], "give one of them"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], complaint: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--data", str(images), "--out", str(out), *arguments]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert complaint in errors[0]
    assert not out.exists()


def test_used_folder_is_refused_before_any_image_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "nowhere", "--out", str(run)]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_a_share_for_validation_of_data_that_is_split(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", "--data", str(images), "--out", str(tmp_path / "new"), "--val-split", "0.3", *QUICK]) == 1
    )
    assert f"error: val_split is 0.3, and {images} is split; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    new = tmp_path / "deep" / "new"
    arguments = ["--data", str(images), "--val-split", "0.3", "--device", "cpu", "--out", str(new)]
    assert main(["eval", str(run), *arguments]) == 1
    assert not new.parent.exists()
    assert f"error: val_split is 0.3, and {images} is split; leave it out" in capsys.readouterr().err


def test_data_has_to_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "run")]) == 1
    assert "--data is missing" in capsys.readouterr().err


def test_eval_of_other_classes_is_an_error(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "data"
    for source, name in (("blue", "blue"), ("green", "cyan")):
        shutil.copytree(images / "val" / source, other / name)
    assert main(["eval", str(run / "last.safetensors"), "--data", str(other), "--device", "cpu"]) == 1
    assert "only the network knows: green, red; only the data has: cyan" in capsys.readouterr().err


def test_neither_a_full_disk_nor_a_closed_pipe_loses_an_evaluation(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", str(run), "--data", str(images), "--device", "cpu", "--workers", "0", "--json"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "metrics.json").mkdir()  # cannot be replaced by a file
    assert main([*command, "--out", str(tmp_path / "full")]) == 1
    printed = capsys.readouterr()
    assert "cannot write" in printed.err
    metrics = json.loads(printed.out)["metrics"]

    def closed(record: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("iformer.cli.eval.print_json_line", closed)
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"] == metrics


def test_resume_in_a_folder_without_a_run_names_near_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["train", "--resume", "--out", str(tmp_path / "mime")]) == 1
    error = capsys.readouterr().err
    assert "mime holds no run to resume; check --out, or give --data to start one there; did you mean" in error
