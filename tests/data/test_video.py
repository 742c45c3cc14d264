"""Videos: reading, writing, and errors of one line for damaged files."""

from __future__ import annotations

import struct
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
            writer.write(Image.new("RGB", (64, 48), (40 * number, 100, 200 - 30 * number)), number / 10)
    return path


def test_frames_go_in_and_come_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    assert has_video_extension(path)
    with VideoReader(path) as reader:
        assert (reader.width, reader.height, reader.rate) == (64, 48, 10)
        frames, times = zip(*reader, strict=True)
    assert len(frames) == 6
    assert times == pytest.approx([number / 10 for number in range(6)])
    for number, frame in enumerate(frames):
        assert np.abs(np.asarray(frame).mean((0, 1)) - [40 * number, 100, 200 - 30 * number]).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sides_lose_a_row(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4", rate=Fraction(25), width=65, height=49) as writer:
        writer.write(Image.new("RGB", (65, 49)), 0.0)
    with VideoReader(tmp_path / "odd.mp4") as reader:
        assert (reader.width, reader.height) == (64, 48)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), width=64, height=48) as writer:
            writer.write(Image.new("RGB", (64, 48)), 0.0)
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


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_frames_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    """Phones store frames as the sensor lies and write how to turn them in the track header."""
    path = tmp_path / "a.mp4"
    pixels = np.full((48, 64, 3), 100, np.uint8)
    pixels[:24, :32] = (220, 20, 20)
    with VideoWriter(path, rate=Fraction(10), width=64, height=48) as writer:
        writer.write(Image.fromarray(pixels), 0.0)
    data = bytearray(path.read_bytes())
    position = data.find(b"tkhd") + 8 + 20 + 16
    a, b, c, d = (value * 0x10000 for value in matrix)
    data[position : position + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        (frame,) = reader
        assert frame.image.size == (reader.width, reader.height) == ((48, 64) if turns % 2 else (64, 48))
    assert np.abs(np.asarray(frame.image).astype(int) - np.rot90(pixels, turns)).mean() < 12


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_frames_have_their_own_times(tmp_path: Path, extension: str) -> None:
    """A screen recording: ten frames in a second, then one a second."""
    times = [0.1 * number for number in range(10)] + [1.0 + number for number in range(10)]
    path = tmp_path / f"a.{extension}"
    with VideoWriter(path, rate=Fraction(10), width=64, height=48) as writer:
        for seconds in times:
            writer.write(Image.new("RGB", (64, 48)), seconds)
    with VideoReader(path) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx(times, abs=2e-3)
