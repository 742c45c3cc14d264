"""Videos: frames go in and come out, and a damaged file is one clear line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.data.video import VideoReader, VideoWriter, has_video_extension
from iformer.errors import DataError


def write(path: Path, frames: int = 6) -> Path:
    with VideoWriter(path, rate=Fraction(10), width=64, height=48) as writer:
        for number in range(frames):
            writer.write(Image.new("RGB", (64, 48), (40 * number, 100, 200 - 30 * number)))
    return path


def test_frames_go_in_and_come_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    assert has_video_extension(path)
    with VideoReader(path) as reader:
        assert (reader.width, reader.height, reader.rate) == (64, 48, 10)
        frames = list(reader)
    assert len(frames) == 6
    for number, frame in enumerate(frames):
        assert np.abs(np.asarray(frame).mean((0, 1)) - [40 * number, 100, 200 - 30 * number]).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sides_lose_a_row(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4", rate=Fraction(25), width=65, height=49) as writer:
        writer.write(Image.new("RGB", (65, 49)))
    with VideoReader(tmp_path / "odd.mp4") as reader:
        assert (reader.width, reader.height) == (64, 48)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), width=64, height=48) as writer:
            writer.write(Image.new("RGB", (64, 48)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    whole = write(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, words in (("text.mp4", "not a video"), ("cut.mp4", "not a video"), ("none.mp4", "no such file")):
        with pytest.raises(DataError, match=words) as caught:
            VideoReader(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
