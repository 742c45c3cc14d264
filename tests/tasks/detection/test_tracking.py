"""`predict --track`: objects keep their numbers from frame to frame of a video."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import iformer
from iformer.cli.main import main
from iformer.data.video.reader import VideoReader
from iformer.data.video.writer import VideoWriter
from iformer.errors import MissingDependencyError, UserError
from iformer.tasks.detection.predict import BoxTracker, DetectionPredictor
from tiny.dense import light_detector, light_segmenter
from tiny.networks import labelled_classifier
from tiny.videos import BLUE, RED, ColourDetector

RATE = 10


def squares(path: Path, *, frames: int = 12, hidden: Sequence[int] = (), faint: Sequence[int] = ()) -> Path:
    """A red square moves to the right above a blue one that moves to the left; some frames lack the red one."""
    with VideoWriter(path, rate=Fraction(RATE), width=128, height=96) as writer:
        for number in range(frames):
            image = Image.new("RGB", (128, 96), (30, 30, 30))
            draw = ImageDraw.Draw(image)
            left = 8 + 6 * number
            if number not in hidden:
                colour = (130, 30, 30) if number in faint else RED
                draw.rectangle((left, 16, left + 24, 40), fill=colour)
            draw.rectangle((90 - 6 * number, 56, 114 - 6 * number, 80), fill=BLUE)
            writer.write(image, number / RATE)
    return path


def answers_of(boxes: Sequence[Sequence[float]], scores: Sequence[float] | None = None) -> dict[str, Tensor]:
    known = [0.9] * len(boxes) if scores is None else scores
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "scores": torch.tensor(known)}


def test_numbers_hold_through_a_crossing_in_any_order_of_the_boxes() -> None:
    pytest.importorskip("trackers")
    tracker = BoxTracker(rate=RATE, min_score=0.5)
    generator = np.random.default_rng(0)
    followed: dict[str, list[int | None]] = {"right": [], "left": []}
    for number in range(30):
        x = 10.0 * number
        boxes = {"right": [x, 0, x + 60, 80], "left": [290 - x, 20, 350 - x, 100]}
        names = list(generator.permutation(list(boxes)))
        for name, track in zip(
            names, tracker.update(answers_of([boxes[n] for n in names]), number / RATE), strict=True
        ):
            followed[name].append(track)
    assert [tracks[0] for tracks in followed.values()] == [None, None]
    assert sorted(set(tracks[1:]) for tracks in followed.values()) == [{1}, {2}]


def test_numbers_hold_through_missing_frames_and_low_scores_and_end_after_a_second() -> None:
    pytest.importorskip("trackers")
    tracker = BoxTracker(rate=RATE, min_score=0.5)

    def seen(number: int, score: float | None) -> list[int | None]:
        boxes = [] if score is None else [[5.0 * number, 10, 5.0 * number + 40, 60]]
        return tracker.update(answers_of(boxes, [] if score is None else [score]), number / RATE)

    assert seen(0, 0.3) == [None], "a low score starts no track"
    assert seen(1, 0.9) == [None]
    assert seen(2, 0.9) == [1]
    assert [seen(number, None) for number in (3, 4, 5)] == [[], [], []]
    assert seen(6, 0.9) == [1]
    assert seen(7, 0.2) == [1], "a low score continues a track"
    assert seen(8, 0.9) == [1]
    assert seen(8, 0.9) == [1], "a time that is there twice"
    for number in range(9, 25):
        seen(number, None)
    assert seen(25, 0.9) == [None]
    assert seen(26, 0.9) == [2]


@pytest.mark.parametrize("seconds", [1.01, 5.0, 86_400.0])
def test_numbers_hold_in_time_lapses(seconds: float) -> None:
    """The rate of a time lapse can be wrong: Matroska files of screenshots say 25."""
    pytest.importorskip("trackers")
    tracker = BoxTracker(rate=25, min_score=0.5)
    frames = []
    for number in range(9):
        boxes = [] if number in (3, 6, 7) else [[2.0 * number, 10, 2.0 * number + 40, 60]]
        frames.append(tracker.update(answers_of(boxes), number * seconds))
    assert frames[:6] == [[None], [1], [1], [], [1], [1]]
    assert frames[8] == [None], "two frames without the object end its track"


def test_a_video_is_followed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    video = squares(tmp_path / "clip.mp4", hidden=(5,), faint=(8,))
    out = tmp_path / "out"
    out.mkdir()
    predictor = DetectionPredictor(ColourDetector(), track=True)
    records = list(predictor.predict([video], out))
    found = [{one["name"]: one["track"] for one in record["detections"]} for record in records]
    assert found[0] == {"red": None, "blue": None}
    numbers = found[1]
    assert sorted(numbers.values()) == [1, 2]
    for index, tracks in enumerate(found[2:], start=2):
        assert tracks == ({"blue": numbers["blue"]} if index in (5, 8) else numbers), index
    again = list(predictor.predict([video]))
    assert again == records, "the tracks of a video do not depend on the one before"

    plain_out = tmp_path / "plain"
    plain_out.mkdir()
    plain = list(DetectionPredictor(ColourDetector()).predict([video], plain_out))
    for record, other in zip(records, plain, strict=True):
        kept = [{key: one[key] for key in ("name", "score", "box")} for one in record["detections"]]
        assert kept == other["detections"], "tracking changes no answer"
    with VideoReader(out / "clip.mp4") as drawn, VideoReader(plain_out / "clip.mp4") as undrawn:
        changed = [
            int((np.abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max(2) > 60).sum())
            for a, b in zip(drawn, undrawn, strict=True)
        ]
    assert changed[0] == 0
    assert min(changed[1:]) > 20, "the numbers are drawn"


def test_answers_have_the_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackers")
    video, out, weights = (
        squares(tmp_path / "clip.mp4", frames=3),
        tmp_path / "out",
        tmp_path / "light.safetensors",
    )
    network = light_detector()
    iformer.save(network, weights)
    options = ["--min-score", "0", "--max-detections", "5", "--track"]
    command = ["predict", str(video), "--weights", str(weights), *options, "--json"]
    assert main([*command, "--out", str(out), "--format", "csv"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [one["track"] for record in records for one in record["detections"]]
    assert {type(track) for track in expected} == {int, type(None)}
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [int(row["track"]) if row["track"] else None for row in rows] == expected
    frames = iformer.predict(network, video, min_score=0.0, max_detections=5, track=True)
    assert [answer.track for frame in frames for answer in frame.answers] == expected


def test_refusals_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, image = squares(tmp_path / "clip.mp4", frames=1), tmp_path / "a.png"
    Image.new("RGB", (40, 32)).save(image)
    with pytest.raises(
        UserError, match=r"a\.png is no video; --track is for videos, cameras and streams, leave it out"
    ):
        iformer.predict(light_detector(), [video, image], track=True)
    with pytest.raises(UserError, match="--track is not for classifiers; leave it out"):
        iformer.predict(labelled_classifier(), image, track=True)
    with pytest.raises(UserError, match="--track is not for segmenters; leave it out"):
        iformer.predict(light_segmenter(), video, track=True)
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(
        MissingDependencyError, match=r"trackers is not installed; run: pip install 'iformer\[track\]'"
    ):
        iformer.predict(light_detector(), video, out=tmp_path / "out", track=True)
    assert not (tmp_path / "out").exists()
