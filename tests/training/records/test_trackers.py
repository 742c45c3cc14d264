"""Trackers, through Accelerate's own classes."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.cli.main import main
from iformer.errors import MissingDependencyError, UnknownNameError, UserError
from iformer.training.loop import train
from iformer.training.records.trackers import (
    TRACKERS,
    Trackers,
    stored_trackers,
    tracker_names,
)
from tiny.classification import make_images, tiny_job, tiny_recipe

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


class Recorder:
    """Stands for a service's run: keeps what it is given."""

    id = "run-7"

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = False
        self.fails = False

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails:
            raise ConnectionError("no route to host")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(autouse=True)
def _process() -> None:
    """Accelerate's trackers ask which process they are in."""
    pytest.importorskip("accelerate").PartialState()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module `wandb` with what Accelerate calls; `runs` has each run, `options` those of `init`."""
    found = SimpleNamespace(runs=[], options=[])
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]

    def init(**options: Any) -> Recorder:
        found.runs.append(Recorder())
        found.options.append(options)
        return found.runs[-1]  # type: ignore[no-any-return]

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda picture: picture  # type: ignore[attr-defined]
    module.config = SimpleNamespace(update=lambda values, **_: found.runs[-1].config.update(values))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        (["none"], ()),
        (["tensorboard"], ("tensorboard",)),
        (["tensorboard, tensorboard"], ("tensorboard",)),
    ],
)
def test_names(given: list[str], expected: tuple[str, ...]) -> None:
    assert tracker_names(given) == expected


def test_names_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="tensorbord"):
        tracker_names(["tensorbord"])
    for empty in ("", " ", ","):
        with pytest.raises(UserError, match=r"--tracker is empty; give tensorboard, .*, or none for no tracker"):
            tracker_names([empty])
    with pytest.raises(UserError, match="--tracker has none and others"):
        tracker_names(["none,tensorboard"])
    monkeypatch.setitem(TRACKERS, "comet", ("comet_ml_that_is_not_there", "comet-ml"))
    with pytest.raises(MissingDependencyError, match="is not installed; run: pip install comet-ml"):
        tracker_names(["comet"])


def test_numbers_pictures_and_settings(wandb: SimpleNamespace, tmp_path: Path) -> None:
    config = {"lr": 0.1, "augment": {"hflip": 0.5, "scale": (0.1, 1.0)}}
    trackers = Trackers(["wandb"], tmp_path, config=config)
    trackers.log({"step/loss": 0.5}, 3)
    trackers.log_picture("predictions", PICTURE, 4)
    trackers.log_picture("predictions", None, 5)
    trackers.close()
    (run,) = wandb.runs
    assert run.config == {"lr": 0.1, "augment.hflip": 0.5, "augment.scale": "(0.1, 1.0)"}
    assert run.logged == [({"step/loss": 0.5}, 3), ({"predictions": [PICTURE]}, 4)]
    assert run.finished
    assert wandb.options[0]["project"] == "iformer"
    assert wandb.options[0]["name"] == tmp_path.name


def started(*arguments: Any, **options: Any) -> None:
    """Start trackers, store their ids and close them."""
    trackers = Trackers(*arguments, **options)
    trackers.store_ids()
    trackers.close()


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(wandb: SimpleNamespace, tmp_path: Path) -> None:
    started(["wandb"], tmp_path, config={})
    started(["wandb"], tmp_path, config={}, resume=True)
    started(["wandb"], tmp_path, config={})
    assert [options.get("id") for options in wandb.options] == [None, "run-7", None]
    for damaged in ("[", "[" * 100_000, "7", "x" * 100_000):
        (tmp_path / "trackers.json").write_text(damaged)
        started(["wandb"], tmp_path, config={}, resume=True)
        assert "id" not in wandb.options[-1]
    (tmp_path / "trackers.json").unlink()
    os.mkfifo(tmp_path / "trackers.json")
    assert stored_trackers(tmp_path) is None  # and does not wait for a writer


def test_a_resumed_run_keeps_its_trackers_and_their_settings(wandb: SimpleNamespace, tmp_path: Path) -> None:
    assert stored_trackers(tmp_path) is None
    started(["wandb"], tmp_path, config={"epochs": 1})
    assert stored_trackers(tmp_path) == ("wandb",)
    (tmp_path / "tensorboard").mkdir()
    assert stored_trackers(tmp_path) == ("wandb", "tensorboard")
    started(["wandb"], tmp_path, config={"epochs": 2}, resume=True)
    assert [run.config for run in wandb.runs] == [{"epochs": 1}, {}]  # MLflow refuses other values of a known run


def test_a_resumed_run_without_trackers_gets_none(wandb: SimpleNamespace, tmp_path: Path) -> None:
    started(["tensorboard"], tmp_path / "default", config={})
    assert stored_trackers(tmp_path / "default") is None
    started([], tmp_path, config={})
    assert stored_trackers(tmp_path) == ()
    started(["wandb"], tmp_path, config={}, resume=True)
    started([], tmp_path, config={}, resume=True)
    assert stored_trackers(tmp_path) == ("wandb",)


def test_a_tracker_that_fails_is_left_out(
    wandb: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = Trackers(["wandb", "tensorboard"], tmp_path, config={})
    wandb.runs[0].fails = True
    for step in range(3):
        trackers.log({"step/loss": 0.5}, step)
    assert capsys.readouterr().err == ("note: the tracker wandb failed and gets nothing more (no route to host)\n")
    assert trackers
    trackers.close()


def test_a_tracker_whose_package_is_missing_is_named(wandb: SimpleNamespace, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'part_of_wandb'")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"wandb cannot be started \(it is not installed; run: pip install wandb\)"
    ):
        Trackers(["tensorboard", "wandb"], tmp_path, config={})


def test_a_tracker_that_cannot_start_is_one_line(wandb: SimpleNamespace, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError(f"api_key not configured. {'x' * 500} Set WANDB_API_KEY.\nmore")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(
        UserError,
        match=r"wandb cannot be started \(api_key not .* Set WANDB_API_KEY\.\); --tracker tensorboard trains",
    ):
        Trackers(["tensorboard", "wandb"], tmp_path, config={})


def test_how_to_go_on_without_a_tracker_is_said(wandb: SimpleNamespace, tmp_path: Path) -> None:
    def gone(**_: Any) -> None:
        raise RuntimeError("Run 'a' not found")

    sys.modules["wandb"].init = gone  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"\(Run 'a' not found\); --tracker none continues without it$"):
        Trackers(["wandb"], tmp_path, config={}, resume=True)
    with pytest.raises(UserError, match=r"--tracker tensorboard continues without it$"):
        Trackers(["wandb", "tensorboard"], tmp_path, config={}, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tensorboard").touch()
    with pytest.raises(UserError, match=r"\(.*tensorboard is in its way; move that away\); --tracker none trains"):
        Trackers(["tensorboard"], other, config={})


def test_a_full_disk_of_tensorboard_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    trackers = Trackers(["tensorboard"], tmp_path, config={})
    events = trackers._running["tensorboard"].writer._get_file_writer().event_writer

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    events._async_writer._writer.write = full
    trackers.log({"step/loss": 0.5}, 1)
    events._async_writer._worker.join(10)
    trackers.log({"step/loss": 0.5}, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "the tracker tensorboard failed and gets nothing more ([Errno 28] No space left on device)" in lines[0]
    trackers.close()
    assert threading.excepthook is before


def test_tensorboard_has_pictures(tmp_path: Path) -> None:
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackers = Trackers(["tensorboard"], tmp_path, config={"lr": 0.1})
    trackers.log_picture("predictions", PICTURE, 4)
    trackers.close()
    events = event_file.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (found,) = events.Images("predictions")
    assert (found.step, found.width, found.height) == (4, 4, 4)


def test_a_run_in_mlflows_file_store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    images = make_images(tmp_path_factory.mktemp("images"), 4)
    recipe = tiny_recipe(epochs=2, max_steps=None, ema_decay=None)
    job = tiny_job(images, tmp_path / "run", recipe=recipe, trackers=("mlflow",))
    result = train(job)
    client = mlflow.MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'iformer'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.data.params["augment.hflip"] == str(recipe.augment.hflip)
    assert run.data.metrics["epoch/val_top1"] == pytest.approx(result.metrics["top1"])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "epoch/val_loss")]
    pictures = sorted(file.path for file in client.list_artifacts(run.info.run_id, "predictions"))
    assert pictures == [f"predictions/step-{step:07d}.png" for step in steps]
    assert len(steps) == 2


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "comet", ("comet_ml_that_is_not_there", "comet-ml"))
    words = ["train", "--data", "elpv", "--out", str(tmp_path / "run"), "--tracker", "tensorboard,comet"]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "error: comet_ml_that_is_not_there is not installed; run: pip install comet-ml\n"
    )
    assert not (tmp_path / "run").exists()
