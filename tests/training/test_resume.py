"""A killed and resumed run ends with the same weights as an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import iformer
from iformer.errors import UserError
from iformer.training.loop import train
from iformer.training.records.history import read_history
from iformer.training.state import read_state, saved_step
from tiny.classification import assert_same_tensors, make_images, tiny_job, tiny_recipe
from tiny.interruption import stopped_after
from tiny.programs import Forked

FIELDS: dict[str, Any] = {"epochs": 4, "eval_every": 2, "size_schedule": [[0, 32], [2, 40]], "size": 48}
STEPS = 24
TIMES = ("seconds", "images_per_second", "data_wait")


def kill_when_saved(process: Forked, out: Path, *, step: int) -> None:
    """SIGKILL as soon as a state of `step` or later is there."""
    while process.poll() is None:
        if (saved_step(out / "resume.safetensors") or 0) >= step:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, averages, optimizer state and results; only clocks may differ."""
    for file in ("last.safetensors", "best.safetensors", "resume.safetensors"):
        assert_same_tensors(one / file, other / file)
    histories = [
        [{name: value for name, value in record.items() if name not in TIMES} for record in history]
        for history in (read_history(one / "log.jsonl"), read_history(other / "log.jsonl"))
    ]
    assert histories[0] == histories[1]
    assert [record["epoch"] for record in histories[0]] == [1, 2, 3, 4]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert metrics[0]["metrics"] == metrics[1]["metrics"]
    assert metrics[0]["best"] == metrics[1]["best"]


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(tiny_job(images, out, recipe=tiny_recipe(**FIELDS)))
    return out


def test_run_killed_inside_an_epoch_ends_with_the_same_weights(
    images: Path, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "killed"
    # with workers and more checkpoints: neither may change a bit
    process = Forked(
        "tiny.classification", str(images), str(out), json.dumps({**FIELDS, "workers": 2, "checkpoint_steps": 1})
    )
    kill_when_saved(process, out, step=15)
    progress = read_state(out / "resume.safetensors").progress
    assert 15 <= progress.step < STEPS
    assert not (out / "metrics.json").exists()
    result = train(tiny_job(images, out, recipe=tiny_recipe(**FIELDS), resume=True))
    assert result.best["epoch"] in (2, 4)
    assert_same_run(undisturbed, out)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", [2, 6, 11, 12, 24])
def test_run_stopped_at_any_step_ends_with_the_same_weights(
    images: Path,
    tmp_path: Path,
    undisturbed: Path,
    step: int,
) -> None:
    """Stopped right after a save, at epoch ends (6, 12, 24) before the evaluation too."""
    out = tmp_path / "stopped"
    job = tiny_job(images, out, recipe=tiny_recipe(**FIELDS, checkpoint_steps=1))
    with stopped_after(step, KilledError):
        train(job)
    assert saved_step(out / "resume.safetensors") == step
    train(tiny_job(images, out, recipe=tiny_recipe(**FIELDS), resume=True))
    assert_same_run(undisturbed, out)


def test_finished_run_only_evaluates_again(images: Path, tmp_path: Path, undisturbed: Path) -> None:
    before = {file.name: file.read_bytes() for file in undisturbed.iterdir() if file.suffix == ".safetensors"}
    result = train(tiny_job(images, undisturbed, recipe=tiny_recipe(**FIELDS), resume=True))
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4]
    assert (undisturbed / "resume.safetensors").read_bytes() == before["resume.safetensors"]


def test_run_with_a_truncated_state_continues_from_the_previous_one_with_a_note(
    images: Path, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    state = out / "resume.safetensors"
    assert saved_step(state) == STEPS
    state.write_bytes(state.read_bytes()[:-1000])
    train(tiny_job(images, out, recipe=tiny_recipe(**FIELDS), resume=True))
    assert "continuing from the state before it, of step 18" in capsys.readouterr().err
    assert_same_run(undisturbed, out)


def test_resume_without_a_state_begins(images: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "killed before its first checkpoint"
    out.mkdir()
    (out / "config.yaml").write_text((undisturbed / "config.yaml").read_text())
    (out / "log.jsonl").write_text("{}\n")
    train(tiny_job(images, out, recipe=tiny_recipe(**FIELDS), resume=True))
    assert_same_run(undisturbed, out)


def test_another_run_is_not_resumed(images: Path, tmp_path: Path, undisturbed: Path) -> None:
    before = (undisturbed / "resume.safetensors").read_bytes()
    other = tiny_job(images, undisturbed, recipe=tiny_recipe(**{**FIELDS, "lr": 1.0}, seed=3), resume=True)
    with pytest.raises(UserError, match=r"recipe\.lr was 0\.002, is 1\.0; recipe\.seed was 0, is 3"):
        train(other)
    more = make_images(tmp_path / "more")
    (more / "train" / "red" / "0.png").unlink()
    changed = tiny_job(more, undisturbed, recipe=tiny_recipe(**FIELDS), resume=True)
    with pytest.raises(UserError, match="started there: the training images or their labels changed") as caught:
        train(changed)
    assert "validation" not in str(caught.value)
    network = tiny_job(images, undisturbed, recipe=tiny_recipe(**FIELDS), resume=True)
    network.model.config = network.model.config.with_options(drop_path_rate=0.0)
    with pytest.raises(UserError, match=r"network\.drop_path_rate was 0\.2, is 0\.0"):
        train(replace(network))
    assert (undisturbed / "resume.safetensors").read_bytes() == before


def test_what_no_weight_depends_on_may_change(images: Path, tmp_path: Path, undisturbed: Path) -> None:
    fields = {**FIELDS, "workers": 1, "log_every": 5, "eval_batch_size": 5, "checkpoint_minutes": 1.0}
    train(tiny_job(images, undisturbed, recipe=tiny_recipe(**fields), resume=True))


@pytest.mark.sweep
def test_a_resumed_run_keeps_its_command_and_lists_the_resumptions(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fields = tmp_path / "run", {"epochs": 1}

    def start(command: str, *, step: int | None = None, **changed: int) -> None:
        monkeypatch.setattr("sys.argv", ["/usr/bin/iformer", "train", command])
        job = tiny_job(images, out, recipe=tiny_recipe(**fields, **changed), resume=(out / "log.jsonl").exists())
        if step is None:
            train(replace(job, report=True))
            return
        with stopped_after(step, KilledError):
            train(job)

    start("--first", step=2, checkpoint_steps=1)
    start("--second", step=4, checkpoint_steps=1)
    fields["epochs"] = 2  # which writes config.yaml again
    start("--third")
    found = iformer.load(out / "last.safetensors").metadata.provenance
    assert found["command"] == "iformer train --first"
    assert [start["command"] for start in found["resumed"]] == ["iformer train --second", "iformer train --third"]
    assert all(start["created"] >= found["created"] for start in found["resumed"])
    assert not any("versions" in start for start in found["resumed"]), "the same as at first"
    assert found["metrics_precision"] == "fp32"
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["command"], config["created"]) == (found["command"], found["created"])
    assert config["resumed"] == found["resumed"]
    report = (out / "report.md").read_text()
    assert "| command | `iformer train --first` |" in report
    assert "| resumed | `iformer train --third` (created 20" in report
    best = json.loads((out / "metrics.json").read_text())["best"]
    assert f"(epoch {best['epoch']}, kept as `best.safetensors`), in fp32." in report
    assert ", in fp32." in (out / "README.md").read_text()
