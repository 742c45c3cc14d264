"""Videos: reading, writing, and errors of one line for damaged files."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import iformer.data.video.reader as video_reader
import iformer.data.video.writer as video_writer
from iformer import files
from iformer.data.video.reader import VideoReader, has_video_extension
from iformer.data.video.writer import VideoWriter
from iformer.errors import DataError, OutputError
from tiny.videos import Part, recorded


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_no_missing_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ts")
    with pytest.raises(DataError, match=r"pipe\.ts: not a plain file"):
        VideoReader(tmp_path / "pipe.ts")


def test_a_video_that_is_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4").read_bytes()
    path, refused = tmp_path / "cut.mp4", 0
    for length in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:length])
        try:
            with VideoReader(path) as video:
                list(video)
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("matrix", "swapped", "step_x", "step_y"),
    [
        ((1, 0, 0, 1), False, 1, 1),
        ((0, 1, -1, 0), True, -1, 1),
        ((-1, 0, 0, -1), False, -1, -1),
        ((0, -1, 1, 0), True, 1, -1),
        ((-1, 0, 0, 1), False, -1, 1),
        ((1, 0, 0, -1), False, 1, -1),
        ((0, 1, 1, 0), True, 1, 1),
        ((0, -1, -1, 0), True, -1, -1),
        ((0.9999, 0.0087, -0.0087, 0.9999), False, 1, 1),
        ((0.7071, 0.7071, -0.7071, 0.7071), False, 1, 1),
        ((0, 0, 0, 0), False, 1, 1),
        ((1, 0, 0, 0), False, 1, 1),
    ],
)
def test_frames_are_upright(
    tmp_path: Path, matrix: tuple[float, ...], swapped: bool, step_x: int, step_y: int
) -> None:
    """Phones store frames as the sensor lies and write how to turn them in the track header."""
    path = tmp_path / "a.mp4"
    pixels = np.full((48, 64, 3), 100, np.uint8)
    pixels[:24, :32] = (220, 20, 20)
    with VideoWriter(path, rate=Fraction(10), width=64, height=48) as writer:
        writer.write(Image.fromarray(pixels), 0.0)
    data = bytearray(path.read_bytes())
    position = data.find(b"tkhd") + 8 + 20 + 16
    a, b, c, d = (round(value * 0x10000) for value in matrix)
    data[position : position + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        (frame,) = reader
        assert frame.image.size == (reader.width, reader.height) == ((48, 64) if swapped else (64, 48))
    shown = (pixels.swapaxes(0, 1) if swapped else pixels)[::step_y, ::step_x]
    assert np.abs(np.asarray(frame.image).astype(int) - shown).mean() < 12


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


def test_times_of_joined_recordings_go_on(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.ts", Part(size=(64, 48)), Part(size=(64, 48)))
    with VideoReader(path) as reader:
        times = np.array([frame.seconds for frame in reader])
    assert len(times) == 6
    assert np.diff(times) == pytest.approx(0.1, abs=2e-3)


def test_a_drawn_video_begins_at_zero(tmp_path: Path) -> None:
    """Segments of recorders and dumps of MPEG streams begin hours after 0."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, rate=Fraction(10), width=64, height=48) as writer:
        for seconds in (36_000.0, 36_000.1, 36_002.0):
            writer.write(Image.new("RGB", (64, 48)), seconds)
    with VideoReader(path) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx([0.0, 0.1, 2.0], abs=2e-3)


@pytest.mark.parametrize("gap", [1e4, 2.5e4, 1e14, 1e17])
def test_frames_that_are_hours_apart_are_an_error_of_the_video(tmp_path: Path, gap: float) -> None:
    """MP4 holds 6.6 hours between two frames, less with several gaps in a row."""

    def draw() -> None:
        with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), width=64, height=48) as writer:
            for number in range(4):
                writer.write(Image.new("RGB", (64, 48)), number * gap)

    with pytest.raises(DataError, match=r"cannot be encoded as a.mp4 \(its frames are hours apart\)"):
        draw()
    assert list(tmp_path.iterdir()) == []


def encoded(
    path: Path, *, container: str, codec: str, size: tuple[int, int], pixels: str = "yuv420p", frames: int = 3
) -> Path:
    """Write a black video as cameras and converters do."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        black = np.zeros((size[1], size[0]), np.uint8)
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="gray").reformat(format=pixels)))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [("raw.mpg", "h264", "libx264"), ("raw.avi", "mjpeg", "mjpeg"), ("raw.mp4", "m4v", "mpeg4")],
)
def test_streams_that_cannot_be_rewound_give_every_frame(
    tmp_path: Path, name: str, container: str, codec: str
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encoded(tmp_path / name, container=container, codec=codec, size=(64, 48), pixels=pixels)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("flv", "libx264")]
)
def test_a_video_that_was_cut_off_is_damaged(tmp_path: Path, container: str, codec: str) -> None:
    whole = encoded(tmp_path / "whole", container=container, codec=codec, size=(64, 48), frames=100)
    with VideoReader(whole) as reader:
        assert len(list(reader)) == 100
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with (
        VideoReader(cut) as reader,
        pytest.raises(DataError, match=r"cut: damaged after frame \d+ \(the file states 10\.\d seconds"),
    ):
        list(reader)


def test_a_cut_recording_that_begins_late_is_damaged(tmp_path: Path) -> None:
    """The times of a recorder's segment go on from the segment before; the file states where they end."""
    av = pytest.importorskip("av")
    late, cut = tmp_path / "late.mkv", tmp_path / "cut.mkv"
    with av.open(str(late), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number in range(100):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = 300 + number, Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with VideoReader(late) as reader:
        times = [frame.seconds for frame in reader]
    assert (times[0], times[-1], len(times)) == (pytest.approx(30), pytest.approx(39.9), 100)
    cut.write_bytes(late.read_bytes()[: late.stat().st_size * 6 // 10])
    with VideoReader(cut) as reader, pytest.raises(DataError, match=r"the file states 40\.0 seconds"):
        list(reader)


def test_a_long_last_frame_is_no_cut(tmp_path: Path) -> None:
    """Slides: each picture is shown for four seconds, and the file states the end of the last one."""
    av = pytest.importorskip("av")
    path = tmp_path / "slides.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(3):
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts, frame.time_base, frame.duration = 40 * number, Fraction(1, 10), 40
            for packet in stream.encode(frame):
                packet.duration = 40
                file.mux(packet)
        file.mux(stream.encode(None))
    with VideoReader(path) as reader:
        assert reader._stated_end() == pytest.approx(12, abs=0.5)
        assert [frame.seconds for frame in reader] == pytest.approx([0, 4, 8])


@pytest.mark.parametrize("size", [(1, 1), (64, 1), (1, 64)])
def test_videos_of_one_pixel_are_written(tmp_path: Path, size: tuple[int, int]) -> None:
    path = encoded(tmp_path / "a.mov", container="mov", codec="png", size=size, pixels="rgb24")
    sides: Any = dict(zip(("width", "height"), size, strict=True))
    with VideoReader(path) as reader, VideoWriter(tmp_path / "b.mp4", rate=reader.rate, **sides) as writer:
        for image, seconds in reader:
            writer.write(image, seconds)
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert (reader.width, reader.height) == (max(2, size[0]), max(2, size[1]))
        assert len(list(reader)) == 3


@pytest.mark.parametrize("name", ["12:30.mp4", "pipe:0.mp4", "file:a.mp4", "{1}.mp4", "n" * 251 + ".mp4"])
def test_any_name_of_a_file_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(name), frames=2)
    with VideoReader(name) as reader:
        assert len(list(reader)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_lists_of_other_files_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "other.mp4")
    for name, text in (
        ("concat.mp4", "ffconcat version 1.0\nfile other.mp4\n"),
        ("playlist.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: not a video, or damaged"):
            VideoReader(tmp_path / name)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "ffv1"), ("mov", "png")])
def test_frames_have_the_limit_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, codec: str
) -> None:
    path = encoded(tmp_path / "a.mov", container=container, codec=codec, size=(64, 48), pixels="gray", frames=1)
    monkeypatch.setattr(video_reader, "MAX_PIXELS", 64 * 48)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 1
    monkeypatch.setattr(video_reader, "MAX_PIXELS", 64 * 47)
    with pytest.raises(DataError, match=r"3,008.*not decoded"):
        VideoReader(path)


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextlib.contextmanager
    def replacing(path: Path) -> Iterator[io.BytesIO]:
        with files.replacing(path):
            yield Full()

    monkeypatch.setattr(video_writer, "replacing", replacing)
    with pytest.raises(OutputError, match=r"cannot write .*a\.mp4: No space left on device"):
        write(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_what_the_encoder_refuses_is_an_error_of_the_video(tmp_path: Path) -> None:
    def wide() -> None:
        with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), width=40_000, height=2) as writer:
            writer.write(Image.new("RGB", (40_000, 2)), 0.0)

    with pytest.raises(DataError, match=r"cannot be encoded as a\.mp4"):
        wide()
    assert list(tmp_path.iterdir()) == []
