"""A run names a network as the best one only if its file holds that network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as read

from iformer.cli.train import print_result
from iformer.models.weights.resolve import load
from iformer.tasks.classification.training import ClassificationWorkload
from iformer.training.loop import train
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState
from tiny.classification import Linear, tiny_job, tiny_recipe
from tiny.interruption import stopped_after
from tiny.pyramid import JOBS
from tiny.shapes import make_shapes

TOP1 = {1: 90.0, 2: 40.0, 3: 30.0, 4: 50.0}
"""Top-1 accuracy in percent that the evaluation after each epoch finds."""


@pytest.fixture(autouse=True)
def _accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations after 6, 12, ... steps find the accuracies of `TOP1`."""
    evaluate = ClassificationWorkload.evaluate

    def found(workload: Any, network: Any, **options: Any) -> Any:
        evaluation = evaluate(workload, network, **options)
        step = json.loads(workload.job.folder.joinpath("log.jsonl").read_text().splitlines()[-1])["step"]
        return replace(evaluation, metrics={**evaluation.metrics, "top1": TOP1[step // 6]})

    monkeypatch.setattr(ClassificationWorkload, "evaluate", found)


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best evaluation was the first, killed after the first step of its third epoch."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        _accuracies.__wrapped__(patch)  # type: ignore[attr-defined]
        with stopped_after(13):
            train(job(images, out))
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> RunFolder:
    """A fresh copy of `stopped`."""
    return RunFolder(Path(shutil.copytree(stopped, tmp_path / "run")))


def job(images: Path, out: Path, *, epochs: int = 3, **options: Any) -> Any:
    return tiny_job(images, out, recipe=tiny_recipe(epochs=epochs, checkpoint_steps=1, log_every=1), **options)


def assert_same_tensors(path: Path, contents: bytes) -> None:
    found, expected = read(path.read_bytes()), read(contents)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-1000] ^= 1
    path.write_bytes(contents)


def other_classes(path: Path) -> None:
    contents = path.read_bytes()
    assert contents.count(b'\\"red\\"') == 1
    path.write_bytes(contents.replace(b'\\"red\\"', b'\\"rad\\"'))


def of_another_epoch(path: Path) -> None:
    shutil.copy(path.with_name("last.safetensors"), path)


DAMAGE = {
    "is missing": Path.unlink,
    "is damaged;": empty,
    "is damaged: its checksum does not match": flip_a_bit,
    "is damaged: its checksum does not match its contents": other_classes,
    "is the network of step 12, not of step 6": of_another_epoch,
}


@pytest.mark.parametrize(("fault", "damage"), DAMAGE.items())
def test_a_lost_best_network_is_said_and_replaced_by_the_next_evaluation(
    images: Path,
    run: RunFolder,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    damage: Callable[[Path], Any],
) -> None:
    damage(run.best)
    result = train(job(images, run.path, resume=True))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert f"{run.best} {fault}" in note
    assert "the best network so far, of epoch 1 with top-1 90.00 %, is lost; the next evaluation writes" in note
    assert (result.best["epoch"], result.best["top1"]) == (3, 30.0)
    assert load(run.best).metadata.provenance["step"] == 18


def test_the_best_network_after_a_loss_is_the_one_that_is_named(
    images: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.best.unlink()
    result = train(job(images, run.path, epochs=4, resume=True, report=True))
    assert (result.best["epoch"], result.best["top1"]) == (4, 50.0)
    print_result(result, json=False)
    captured = capsys.readouterr()
    assert "best  50.00 % in epoch 4" in captured.out
    report = run.report.read_text()
    assert "The best evaluation was 50.00 % (epoch 4, kept as `best.safetensors`)" in report
    assert "is lost; the next evaluation writes" in report
    assert load(run.best).metadata.provenance["step"] == 24
    train(job(images, run.path, epochs=4, resume=True))
    assert "note:" not in capsys.readouterr().err, "what is recorded fits the file again"


def test_a_finished_run_names_its_last_network_where_the_best_one_is_lost(
    images: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(job(images, run.path, resume=True))
    assert before.best["epoch"] == 1
    empty(run.best)
    result = train(job(images, run.path, resume=True))
    assert "is lost" in capsys.readouterr().err
    assert result.best["epoch"] == 3
    assert json.loads(run.metrics.read_text())["best"]["epoch"] == 3
    assert_same_tensors(run.best, run.last.read_bytes())
    again = train(job(images, run.path, resume=True))
    assert (again.best["epoch"], capsys.readouterr().err.count("note:")) == (3, 0)


def test_a_sound_best_network_stays(images: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.best.read_bytes()
    result = train(job(images, run.path, resume=True))
    assert result.best["epoch"] == 1
    assert run.best.read_bytes() == before
    assert "note:" not in capsys.readouterr().err


def test_a_run_killed_between_its_best_network_and_its_state_repeats_the_evaluation(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TOP1, 2, 95.0)
    save = TrainState.save

    def stop_before_saving(state: TrainState, path: Path, **options: Any) -> None:
        if state.progress.epoch == 2:
            raise KeyboardInterrupt
        save(state, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "save", stop_before_saving)
        with pytest.raises(KeyboardInterrupt):
            train(job(images, tmp_path / "run", epochs=2))
    result = train(job(images, tmp_path / "run", epochs=2, resume=True))
    assert result.best["epoch"] == 2
    assert "note:" not in capsys.readouterr().err


def test_patience_counts_from_the_lost_network_until_an_evaluation_replaces_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(epochs=4, patience=1, log_every=1)
    out = tmp_path / "run"
    assert len(train(tiny_job(images, out, recipe=recipe)).history) == 2
    RunFolder(out).best.unlink()
    result = train(tiny_job(images, out, recipe=recipe, resume=True))
    assert len(result.history) == 2, "a run that has stopped early stays so"
    assert result.best["epoch"] == 2
    assert RunFolder(out).best.is_file()


def test_a_network_of_another_package_is_checked_too(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(replace(job(images, out, epochs=1), model=Linear()))
    before = (out / "best.safetensors").read_bytes()
    (out / "best.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    train(replace(job(images, out, epochs=1, resume=True), model=Linear()))
    assert "it is written again from last.safetensors, which holds the same network" in capsys.readouterr().err
    assert_same_tensors(out / "best.safetensors", before)


TASKS = [
    "light",
    "light-segment",
    pytest.param("detect", marks=pytest.mark.sweep),
    pytest.param("segment", marks=pytest.mark.sweep),
]


@pytest.mark.parametrize("task", TASKS)
def test_the_best_network_of_other_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    data = make_shapes(tmp_path / "shapes", train=4, val=2)
    fields = {"epochs": 1, "max_steps": 1}
    run = RunFolder(tmp_path / "run")
    result = train(JOBS[task](data, run.path, fields=fields))
    before = run.best.read_bytes()
    empty(run.best)
    assert train(JOBS[task](data, run.path, fields=fields, resume=True)).best == result.best
    assert "it is written again from last.safetensors" in capsys.readouterr().err
    assert_same_tensors(run.best, before)
    run.best.unlink()
    run.last.unlink()
    train(JOBS[task](data, run.path, fields=fields, resume=True))
    assert f"{run.best} is missing; the best network so far, of epoch 1" in capsys.readouterr().err
    assert load(run.best).metadata.provenance["epoch"] == 1
