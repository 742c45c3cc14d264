"""When a run folder can be used, and which files stay in it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iformer.errors import UserError
from iformer.training.records.run_folder import RunFolder


def used(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.prepare(resume=False, overwrite=False)
    folder.write_config({"recipe": {"epochs": 1}, "name": "größer"})
    for file in (folder.best, folder.last, folder.state, folder.log, folder.metrics, folder.report):
        file.write_text("old")
    (path / "curves.png").write_text("old")
    (path / "notes.txt").write_text("mine")
    return folder


def overwrite(folder: RunFolder) -> None:
    folder.prepare(resume=False, overwrite=True)
    for file in folder.run_files():
        file.unlink()


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a" / "b"):
        RunFolder(path).prepare(resume=False, overwrite=False)
        RunFolder(path).prepare(resume=True, overwrite=False)
        assert path.is_dir()


def test_run_is_neither_touched_nor_removed_unasked(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    with pytest.raises(UserError, match=r"--resume continues it, --overwrite removes it"):
        folder.prepare(resume=False, overwrite=False)
    assert folder.state.read_text() == "old"


def test_resume_keeps_everything_but_leftovers(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    leftover = folder.path / ".0123456789abcdef.part"
    leftover.write_text("half a file")
    folder.prepare(resume=True, overwrite=False)
    assert not leftover.exists()
    assert folder.state.read_text() == folder.last.read_text() == "old"


@pytest.mark.parametrize("kept", ["metrics.json", "log.jsonl"])
def test_a_run_without_its_state_does_not_start_again(tmp_path: Path, kept: str) -> None:
    folder = used(tmp_path / "run")
    for file in (folder.state, folder.metrics):
        file.unlink()
    folder.prepare(resume=True, overwrite=False)  # killed in its first epoch, before the first state
    folder.log.write_text('{"event": "epoch", "epoch": 1}\n{"event": "epoch", "epoch": 2}\n')
    if kept == "metrics.json":
        folder.metrics.write_text("{}")
        folder.log.unlink()
    with pytest.raises(
        UserError, match=r"run has no resume.safetensors, so .*; --overwrite starts again; --model .*last"
    ):
        folder.prepare(resume=True, overwrite=False)
    assert folder.last.read_text() == "old"


@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("kept", ["log.jsonl", "last.safetensors", "resume.before.safetensors"])
def test_a_run_whose_config_is_missing_is_told_from_other_files(
    tmp_path: Path, kept: str, options: tuple[bool, bool]
) -> None:
    (tmp_path / kept).write_text('{"event": "start", "step": 0}\n')
    resume, overwrite = options
    with pytest.raises(
        UserError, match=r"holds files of a training run, but its config\.yaml is missing; copy"
    ) as error:
        RunFolder(tmp_path).check(resume=resume, overwrite=overwrite)
    further = f"or give another --out; --model {tmp_path / 'last.safetensors'} with it trains its network further"
    assert str(error.value).endswith(further if kept.startswith("last") else "or give another --out")


def test_a_run_with_a_damaged_config_and_no_checkpoint_yet_can_be_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("recipe: [")
    with pytest.raises(UserError, match="not of a training run"):
        folder.prepare(resume=False, overwrite=True)
    folder.log.write_text('{"event": "start", "step": 0}\n')
    overwrite(folder)
    assert not folder.log.exists()


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    folder.report.write_text(
        "![A task's own picture](scatter.png) ![elsewhere](../notes.png) [holiday](holiday.png)"
    )
    for name in ("scatter.png", "holiday.png"):
        (folder.path / name).write_text("old")
    (tmp_path / "notes.png").write_text("mine")
    overwrite(folder)
    assert (tmp_path / "notes.png").exists()
    assert sorted(file.name for file in folder.path.iterdir()) == ["config.yaml", "holiday.png", "notes.txt"]


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_folder_of_something_else_is_refused(tmp_path: Path, option: str) -> None:
    (tmp_path / "holiday.png").write_text("mine")
    with pytest.raises(UserError, match="not of a training run"):
        RunFolder(tmp_path).prepare(resume=option == "resume", overwrite=option == "overwrite")
    assert (tmp_path / "holiday.png").read_text() == "mine"


def test_file_and_contradiction_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file").prepare(resume=False, overwrite=False)
    with pytest.raises(UserError, match="one of them"):
        RunFolder(tmp_path / "new").prepare(resume=True, overwrite=True)
    assert not (tmp_path / "new").exists()


def test_config_comes_back(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    assert folder.read_config() == {"recipe": {"epochs": 1}, "name": "größer"}
    assert RunFolder(tmp_path / "none").read_config() == {}


@pytest.mark.parametrize("text", ["recipe: [", "just text", "epochs: 3", "\udcff"])
def test_damaged_config_is_an_error(tmp_path: Path, text: str) -> None:
    folder = used(tmp_path / "run")
    folder.config.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        folder.read_config()


HOLD = """
import os, sys, time
from pathlib import Path
from iformer.training.records.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).reserved():
    if os.fork() == 0:  # as a data worker, which outlives a killed process
        os.close(1)
        os.close(2)
        time.sleep(10)
        os._exit(0)
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("end", ["quits", "killed"])
def test_one_process_at_a_time_trains_into_a_folder(tmp_path: Path, end: str) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(UserError, match=r"run is in use: another run trains into it"), folder.reserved():
            pass
        if end == "killed":
            holder.send_signal(signal.SIGKILL)
        else:
            holder.communicate("")
        holder.wait()
        with folder.reserved():
            folder.prepare(resume=False, overwrite=False)  # the lock's own file makes no run
            assert folder.lock.exists()
        assert not list(folder.path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_second_run_of_the_same_process_leaves_the_first_its_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.reserved():
        for _ in range(2):
            with pytest.raises(UserError, match="run is in use"), folder.reserved():
                pass
        assert taken_elsewhere(folder)
    assert not taken_elsewhere(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_run_whose_folder_was_removed_leaves_the_next_ones_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = folder.reserved()
    first.__enter__()
    shutil.rmtree(folder.path)
    with folder.reserved():
        first.__exit__(None, None, None)
        assert folder.lock.exists()
        assert taken_elsewhere(folder)


def taken_elsewhere(folder: RunFolder) -> bool:
    """Whether another process finds the folder in use."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as other:
        output, errors = other.communicate()
    assert other.returncode == 0 or "is in use" in errors
    return output != "has it\n"


def test_overwrite_leaves_the_folders_of_other_programs_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("title: my site\n")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not of a training run"):
        RunFolder(tmp_path).prepare(resume=False, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine"
