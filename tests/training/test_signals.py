"""A scheduler's signal: the run ends between two steps, saved, with the code that asks to be run again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from iformer.cli.output import REQUEUE
from iformer.errors import StoppedBySignalError
from iformer.training import loop
from iformer.training.loop import train
from iformer.training.signals import SIGNALS, SignalHandler
from iformer.training.state import saved_step
from tiny.classification import tiny_job, tiny_recipe
from tiny.programs import start

FIELDS = {"epochs": 3, "checkpoint_minutes": 1000.0}


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_saves_between_two_steps(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Sent inside of step 9, in the second epoch; the run that is continued ends as the undisturbed one."""
    recipe = tiny_recipe(**FIELDS)
    train(tiny_job(images, tmp_path / "whole", recipe=recipe))
    before = signal.getsignal(number)
    seed_everything = loop.seed_everything

    def kill_at_9(seed: int, step: int, rank: int) -> None:
        seed_everything(seed, step, rank)
        if step == 9:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_everything", kill_at_9)
        with pytest.raises(
            StoppedBySignalError, match=rf"stopped by {number.name} at step 10, saved; --resume continues"
        ):
            train(tiny_job(images, tmp_path / "stopped", recipe=recipe))
    assert signal.getsignal(number) == before
    assert saved_step(tmp_path / "stopped" / "resume.safetensors") == 10
    train(tiny_job(images, tmp_path / "stopped", recipe=recipe, resume=True))
    networks = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "stopped")]
    from safetensors.torch import load

    whole, stopped = map(load, networks)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_one_of_two_processes_is_told_and_both_stop_at_the_same_step(images: Path, tmp_path: Path) -> None:
    """With worker processes, each of which gets the signal too, as from a scheduler that tells a whole group."""
    out = tmp_path / "run"
    fields = json.dumps({"epochs": 500, "workers": 1, "eval_every": 500, "mixup_alpha": 0.0, "cutmix_alpha": 0.0})
    processes = []
    for rank in range(2):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(29000 + os.getpid() % 1000),
        }
        processes.append(start("tiny.classification", str(images), str(out), fields, **variables))
    state = out / "resume.safetensors"
    while all(process.poll() is None for process in processes) and (saved_step(state) or 0) < 6:
        time.sleep(0.05)
    os.killpg(processes[1].pid, signal.SIGTERM)
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [REQUEUE, REQUEUE], errors
    step = saved_step(state)
    assert step is not None
    assert f"stopped by SIGTERM at step {step}, saved" in errors[1]
    assert f"stopped by a signal to another process at step {step}, saved" in errors[0]


def test_a_run_alone_needs_no_agreement() -> None:
    with SignalHandler(1) as signals:
        assert signals.poll() == (False, False)
        assert signals.poll(True) == (False, True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.poll() == (True, False)
