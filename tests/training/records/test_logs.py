"""The log of a run and its messages."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from iformer.training.records import logs
from iformer.training.records.history import read_history
from iformer.training.records.logs import ProgressView, RunLog
from iformer.training.records.pace import format_seconds
from iformer.training.records.trackers import Trackers


def test_log_is_cut_where_a_state_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, None)
    log.write("start", step=0)
    log.write("epoch", epoch=1, step=3, train_loss=1.0)
    kept = log.sync()
    log.write("epoch", epoch=2, step=6, train_loss=0.5)
    log.close()
    log = RunLog(path, None, keep_bytes=kept)
    log.write("epoch", epoch=2, step=6, train_loss=0.25)
    log.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "epoch", "epoch"]
    assert read_history(path) == [
        {"epoch": 1, "step": 3, "train_loss": 1.0},
        {"epoch": 2, "step": 6, "train_loss": 0.25},
    ]


def test_new_log_drops_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    RunLog(path, None).close()
    assert path.read_text() == ""


def test_log_shorter_than_the_state_says_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start"}\n')
    RunLog(path, None, keep_bytes=1000).close()
    assert path.read_bytes() == b'{"event": "start"}\n'


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path / "log.jsonl", Trackers(["tensorboard"], tmp_path, config={}))
    log.write("start", step=0, command="x")
    log.write("step", step=2, epoch=1, loss=0.5)
    log.write("epoch", step=4, epoch=1, val_top1=75.0, images_per_second=None)
    log.close()
    events = event_file.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/val_top1", "step/loss"]
    assert [(event.step, event.value) for event in events.Scalars("epoch/val_top1")] == [(4, 75.0)]


def test_plain_lines_come_once_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with ProgressView(total=100) as view:
        for _ in range(5):
            now[0] += 25
            view.advance(10, "loss 1.0")
        view.say("epoch 1")
    assert capsys.readouterr().err.splitlines() == [
        "loss 1.0, 2 min 55 s left",
        "epoch 1",
    ]
    with ProgressView(total=0) as view:
        now[0] += 100
        view.advance(1, "frame 1")
    assert capsys.readouterr().err.splitlines() == ["frame 1"], "the length of a stream is unknown"


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView(total=10, shown=False) as view:
        view.advance(10, "loss")
        view.say("epoch 1")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (8.2, "9 s"), (59.5, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_damaged_lines_are_left_out_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = [b'{"event": "epoch", "epoch": 1, "step": 2}', b'{"event": "epoch", "epoch": 2, "step": 4}']
    damaged = [
        b'{"event": "epo',
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b'{"epoch": 3}',
        b'{"event": "epoch"}',
        b"[" * 100_000,
    ]
    path.write_bytes(b"\n".join([good[0], *damaged, good[1]]) + b"\n")
    assert read_history(path) == [{"epoch": 1, "step": 2}, {"epoch": 2, "step": 4}]


def test_what_is_shown_on_a_terminal_is_neither_a_format_nor_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for what in ("clip {1}", "{task.x}", "{.mp4", "a[link=x]b", "x[#]", "a\x1b]8;;x"):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("COLUMNS", "200")
        with ProgressView(total=2, what=what) as view:
            view.advance(1, "frame [1] {0}")
        written = sys.stderr.getvalue()
        assert what.replace("\x1b", r"\x1b") in written
        assert "frame [1] {0}" in written
        assert "\x1b]8" not in written


def test_a_closed_stderr_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressView(total=2) as view:
        view.advance(1, "step")
        view.say("line")
    assert capsys.readouterr().out == ""
