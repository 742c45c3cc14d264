"""`predict` on cameras and streams: what is written, how it ends, and what is refused."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import iformer
from iformer.cli.main import main
from iformer.data.video import live
from iformer.data.video.reader import VideoReader
from iformer.data.video.writer import VideoWriter
from iformer.errors import UserError
from iformer.models.light_detector import LightDetector
from iformer.tasks.pyramid import PyramidPredictor
from tiny.dense import light_segmenter
from tiny.networks import labelled_classifier

pytest.importorskip("av")

from tiny.streams import http_server, motion_jpeg


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def drawn_frames(path: Path) -> int:
    with VideoReader(path) as video:
        return sum(1 for _ in video)


def test_a_stream_is_answered_and_drawn_until_it_ends(
    detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with http_server({"/cam": motion_jpeg(8, interval=0.03)}) as url:
        assert main(["predict", f"{url}/cam", "--weights", str(detector_file), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [record["frame"] for record in records] == list(range(len(records)))
    assert {record["file"] for record in records} == {f"{url}/cam"}
    assert "detections" in records[0]
    assert {path.name for path in out.iterdir()} == {"cam.mp4", "coco.json", "predictions.jsonl"}
    assert drawn_frames(out / "cam.mp4") == len(records)
    assert lines((out / "predictions.jsonl").read_text()) == records


def test_max_frames_ends_streams_and_videos(
    detector: LightDetector, detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    with http_server({"/cam": motion_jpeg(4, then_wait=stop)}) as url:
        found = list(iformer.predict(light_segmenter(), f"{url}/cam", max_frames=2))
        stop.set()
    assert [one.frame for one in found] == [0, 1]
    assert found[0].path is None
    assert found[0].masks is not None
    assert found[0].masks.shape == (48, 64)
    with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), width=64, height=48) as writer:
        for number in range(4):
            writer.write(Image.new("RGB", (64, 48)), number / 10)
    command = ["predict", str(tmp_path / "a.mp4"), "--weights", str(detector_file), "--max-frames", "3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "3 images in" in capsys.readouterr().err
    assert drawn_frames(tmp_path / "out" / "a.mp4") == 3


def test_ctrl_c_ends_a_stream_with_everything_written(
    detector_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, answered = threading.Event(), list[float]()

    def interrupted(predictor: PyramidPredictor, image: Image.Image, seconds: float) -> Any:
        if len(answered) == 3:
            raise KeyboardInterrupt
        answered.append(seconds)
        return predictor.answer(image)

    monkeypatch.setattr("iformer.tasks.detection.predict.DetectionPredictor.answer_frame", interrupted)
    out = tmp_path / "out"
    with http_server({"/cam": motion_jpeg(6, interval=0.05, then_wait=stop)}) as url:
        assert main(["predict", f"{url}/cam", "--weights", str(detector_file), "--out", str(out)]) == 0
        stop.set()
    assert f"written: {out}" in capsys.readouterr().err
    assert len(lines((out / "predictions.jsonl").read_text())) == drawn_frames(out / "cam.mp4") == 3
    assert (out / "coco.json").is_file()


def test_a_caller_that_has_seen_enough_closes_the_stream(detector: LightDetector, tmp_path: Path) -> None:
    stop, out = threading.Event(), tmp_path / "out"
    with http_server({"/cam": motion_jpeg(6, interval=0.05, then_wait=stop)}) as url:
        predictions = iformer.predict(detector, f"{url}/cam", out=out)
        assert [next(predictions).frame, next(predictions).frame] == [0, 1]
        predictions.close()
        stop.set()
    assert drawn_frames(out / "cam.mp4") == 2
    assert {path.name for path in out.iterdir()} == {"cam.mp4", "coco.json", "predictions.jsonl"}


def test_a_stall_is_an_error_that_keeps_the_answers(
    detector_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "STALL_SECONDS", 0.5)
    stop, out = threading.Event(), tmp_path / "out"
    with http_server({"/cam": motion_jpeg(4, then_wait=stop)}) as url:
        assert main(["predict", f"{url}/cam", "--weights", str(detector_file), "--out", str(out), "--json"]) == 1
        stop.set()
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert records[-1]["error"] == f"no frame for 0.5 s after frame {len(records) - 1}"
    assert drawn_frames(out / "cam.mp4") == len(records) - 1 > 0
    assert lines((out / "predictions.jsonl").read_text()) == records


def test_left_out_frames_are_counted(
    detector_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(predictor: PyramidPredictor, image: Image.Image, seconds: float) -> Any:
        threading.Event().wait(0.1)
        return predictor.answer(image)

    monkeypatch.setattr("iformer.tasks.detection.predict.DetectionPredictor.answer_frame", slow)
    with http_server({"/cam": motion_jpeg(20)}) as url:
        assert main(["predict", f"{url}/cam", "--weights", str(detector_file), "--json"]) == 0
    captured = capsys.readouterr()
    answered = len(lines(captured.out))
    assert f"{20 - answered} frames left out, because frames came faster" in captured.err


def test_refusals_are_one_line(detector: LightDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"rtsp://a:\*\*\*@host/x: a camera or stream; classifiers take images"):
        iformer.predict(labelled_classifier(), "rtsp://a:b@host/x", out=tmp_path / "out")
    with pytest.raises(UserError, match="--max-frames is not for classifiers"):
        iformer.predict(labelled_classifier(), np.zeros((32, 32, 3), np.uint8), max_frames=2)
    with pytest.raises(UserError, match=r"image 1 is no video; --max-frames is for videos, cameras and streams"):
        iformer.predict(detector, np.zeros((32, 32, 3), np.uint8), max_frames=2)
    with pytest.raises(UserError, match="a camera or stream must be the only source of a call"):
        iformer.predict(detector, ["udp://127.0.0.1:1", "rtsp://host/x"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x.mp4").write_bytes(b"a video of the user")
    with pytest.raises(UserError, match=r"x\.mp4 exists, and no earlier predict wrote it"):
        iformer.predict(detector, "rtsp://host/x", out=tmp_path / "taken")
