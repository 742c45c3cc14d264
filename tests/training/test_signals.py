"""Signals of a scheduler: the run stops between two steps, saves, and exits with the code for requeueing."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from iformer.cli.output import FAILED, INTERRUPTED, REQUEUE, process_settings
from iformer.errors import StoppedBySignalError
from iformer.files import replacing
from iformer.training import loop
from iformer.training import signals as signals_module
from iformer.training.loop import train
from iformer.training.records.run_folder import RunFolder
from iformer.training.signals import SIGNALS, SignalHandler
from iformer.training.state import saved_step
from tiny.classification import tiny_job, tiny_recipe
from tiny.programs import Forked, ranks, start

Program = subprocess.Popen[bytes] | Forked

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


def two_ranks(images: Path, out: Path, fields: dict[str, object]) -> list[Forked]:
    """Both ranks of a run that has made six steps."""
    arguments = (str(images), str(out), json.dumps(fields))
    processes = [Forked("tiny.classification", *arguments, **variables) for variables in ranks()]
    state = out / "resume.safetensors"
    while all(process.poll() is None for process in processes) and (saved_step(state) or 0) < 6:
        time.sleep(0.05)
    return processes


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(images: Path, tmp_path: Path) -> None:
    """With worker processes, each of which gets the signal too, as from a scheduler that tells a whole group."""
    out = tmp_path / "run"
    fields = {"epochs": 500, "workers": 1, "eval_every": 500, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    processes = two_ranks(images, out, fields)
    os.killpg(processes[1].pid, signal.SIGTERM)
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [REQUEUE, REQUEUE], errors
    step = saved_step(out / "resume.safetensors")
    assert step is not None
    assert f"stopped by SIGTERM at step {step}, saved" in errors[1]
    assert f"stopped by a signal to another process at step {step}, saved" in errors[0]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_lost_rank_is_one_line(images: Path, tmp_path: Path) -> None:
    fields = {"epochs": 500, "workers": 0, "eval_every": 500, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    processes = two_ranks(images, tmp_path / "run", fields)
    processes[1].kill()
    errors = processes[0].communicate(timeout=120)[1].decode()
    processes[1].communicate()
    assert "another process of this run ended or cannot be reached" in errors
    assert processes[0].returncode == FAILED
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_run_alone_needs_no_agreement(number: signal.Signals) -> None:
    with SignalHandler(1) as signals:
        assert signals.poll() == (False, False)
        assert signals.poll(True) == (False, True)
        os.kill(os.getpid(), number)
        assert signals.poll() == (True, False)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell caught signals")
def test_a_handler_that_python_does_not_know_stays(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
        try:
            with SignalHandler(1) as signals:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert signals.poll() == (False, False)
            os.kill(os.getpid(), signal.SIGUSR1)  # would kill this process
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert (tmp_path / "stacks").read_text().count("most recent call first") == 2


@pytest.fixture
def llvm() -> Iterator[Callable[[], None]]:
    """A function that installs handlers in C that do nothing, as LLVM does when Triton compiles."""
    libc = ctypes.CDLL(None)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    nothing = kind(lambda number: None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, kind), ctypes.c_void_p
    numbers = (*SIGNALS, signal.SIGSYS)
    before = {number: signal.getsignal(number) for number in numbers}

    def install() -> None:
        for number in numbers:
            libc.signal(number, nothing)

    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell caught signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_handlers_of_llvm_do_not_stay(number: signal.Signals, llvm: Callable[[], None]) -> None:
    llvm()
    with SignalHandler(1) as signals:
        os.kill(os.getpid(), number)
        assert signals.poll() == (True, False)
    with SignalHandler(1) as signals:
        llvm()  # in the first step
        os.kill(os.getpid(), number)
        assert signals.poll() == (False, False)
        os.kill(os.getpid(), number)
        assert signals.poll() == (True, False)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process_settings(), SignalHandler(1) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.poll() == (False, False)
    finally:
        signal.signal(signal.SIGHUP, before)


def started(program: Callable[..., Program], images: Path, out: Path) -> Program:
    """A run with two workers that has saved a state."""
    fields = {"epochs": 500, "workers": 2, "checkpoint_steps": 1, "eval_every": 500}
    process = program("tiny.classification", str(images), str(out), json.dumps(fields))
    while process.poll() is None and saved_step(out / "resume.safetensors") is None:
        time.sleep(0.05)
    return process


def children(process: Program) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def last_line(process: Program) -> str:
    """The last line on stderr of a process that has to end by itself; benchmarks/killing.py measures how soon."""
    errors = process.communicate(timeout=120)[1].decode()
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_a_killed_worker_is_one_line(images: Path, tmp_path: Path) -> None:
    process = started(Forked, images, tmp_path / "run")
    os.kill(children(process)[0], signal.SIGKILL)
    assert "a process that loads images was killed" in last_line(process)
    assert process.returncode == FAILED
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_two_quick_interrupts_leave_no_process_and_no_file(images: Path, tmp_path: Path) -> None:
    process = started(start, images, tmp_path / "run")  # a new Python: its shutdown is interrupted too
    workers = children(process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert last_line(process) == "interrupted"
    assert process.returncode == INTERRUPTED
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not list((tmp_path / "run").glob(".*"))


def test_only_a_quick_second_interrupt_is_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signals_module._after_an_interrupt(time.monotonic() + 60))
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signals_module._after_an_interrupt(time.monotonic()))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_between_two_steps_is_interrupted_after_a_while(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation that takes longer than the scheduler will wait."""
    monkeypatch.setattr(signals_module, "RAISE_AFTER", 0.2)

    def evaluate_for_long(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    job = tiny_job(images, tmp_path / "run", recipe=tiny_recipe(epochs=2, checkpoint_steps=1))
    monkeypatch.setattr(job.workload, "evaluate", evaluate_for_long)
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM; --resume continues from the last saved"):
        train(job)
    assert saved_step(tmp_path / "run" / "resume.safetensors") == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_never_reacts_leaves_no_lock_and_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose main thread is in a long call when the signal arrives."""
    monkeypatch.setattr(signals_module, "EXIT_AFTER", 0.1)
    run = RunFolder(tmp_path)
    child = os.fork()
    if child == 0:
        with suppress(BaseException), SignalHandler(1), run.reserved(), replacing(run.last) as file:
            file.write(b"half of it")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == REQUEUE
    assert not list(tmp_path.iterdir())
