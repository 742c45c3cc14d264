"""A run that fails before its first step is complete leaves its folder as it was."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from iformer.cli.main import main
from iformer.errors import UserError
from iformer.tasks.classification.loss import LabelLoss
from iformer.tasks.classification.training import ClassificationWorkload
from iformer.training import loop
from iformer.training.loop import train
from iformer.training.records.history import read_history
from iformer.training.state import TrainState
from tiny.classification import tiny_job, tiny_recipe
from tiny.interruption import stopped_after


class FailedError(Exception):
    pass


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def in_the_network(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TrainState, "create", fails(FailedError("the network")))


def in_the_loader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClassificationWorkload, "train_loader", fails(UserError("an image cannot be read")))


def in_the_schedule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "build_schedule", fails(FailedError("the schedule")))


def in_the_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LabelLoss, "__call__", fails(UserError("a forward pass has one image")))


def by_ctrl_c(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.AdamW, "step", fails(KeyboardInterrupt()))


def in_a_tracker(patch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        (Path(options["dir"]) / "wandb").mkdir()
        (Path(options["dir"]) / "wandb" / "debug.log").touch()
        raise RuntimeError("api_key not configured")

    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.init = init  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "wandb", module)


FAILURES = [
    (in_the_network, FailedError, "the network"),
    (in_the_loader, UserError, "an image cannot be read"),
    (in_the_schedule, FailedError, "the schedule"),
    (in_the_loss, UserError, "a forward pass has one image"),
    (by_ctrl_c, KeyboardInterrupt, None),
    (in_a_tracker, UserError, "the tracker wandb cannot be started"),
]


def job(images: Path, out: Path, **options: Any) -> Any:
    recipe = tiny_recipe(epochs=1, checkpoint_steps=1, log_every=1)
    trackers = ("tensorboard", "wandb") if "wandb" in sys.modules else ("tensorboard",)
    return tiny_job(images, out, recipe=recipe, trackers=trackers, **options)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Each path below a folder with the bytes of its file; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its epoch."""
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("runs") / "stopped"
    recipe = tiny_recipe(epochs=1, checkpoint_steps=1, log_every=1)
    with stopped_after(3):
        train(tiny_job(images, out, recipe=recipe, trackers=("tensorboard",)))
    return out


@pytest.mark.parametrize(("fail", "error", "message"), FAILURES)
def test_nothing_is_left_and_nothing_is_lost(
    images: Path,
    stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None],
    error: type[BaseException],
    message: str | None,
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = contents(run)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        fail(patch)
        for folder, options in [
            ("new", {}),
            ("empty", {}),
            ("run", {"overwrite": True}),
            ("run", {"resume": True}),
        ]:
            with pytest.raises(error, match=message):
                train(job(images, tmp_path / folder, **options))
            assert contents(run) == before, options
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]
        assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("replaces", [False, True])
def test_the_corrected_command_works_at_once(
    images: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    recipe, out = tiny_recipe(epochs=1, max_steps=2, log_every=1), tmp_path / "run"
    if replaces:
        shutil.copytree(stopped, out)
    events = set((out / "tensorboard").glob("*"))
    assert bool(events) == replaces
    with monkeypatch.context() as patch:
        in_the_loss(patch)
        with pytest.raises(UserError):
            train(tiny_job(images, out, recipe=recipe, overwrite=replaces))
    train(tiny_job(images, out, recipe=recipe, trackers=("tensorboard",), overwrite=replaces))
    assert [record["epoch"] for record in read_history(out / "log.jsonl")] == [1]
    (new,) = (out / "tensorboard").glob("*")
    assert new not in events


def test_ctrl_c_before_the_first_step_names_no_run_to_continue(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_ctrl_c(monkeypatch)
    words = ["train", "--data", str(images), "--out", str(tmp_path / "run"), "--weights", "none", "--epochs", "1"]
    assert main([*words, "--size", "32", "--batch-size", "8", "--device", "cpu"]) == 130
    assert "--resume" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
