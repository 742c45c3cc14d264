"""Reading and writing of video files frame by frame, with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from iformer.dependencies import require
from iformer.errors import DataError

VIDEO_EXTENSIONS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"))
"""Extensions of video files, in lower case."""

_TICKS = 90_000
"""Units of time of a written video per second, as in MPEG."""


def has_video_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether the file's extension is that of a video format."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


class Frame(NamedTuple):
    """A frame of a video."""

    image: Image.Image
    """RGB, upright."""
    seconds: float
    """Time at which the frame is shown."""


class VideoReader:
    """The frames of a video, in order. A context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the video and decode its first frame, so that a bad file is reported at once.

        Raises:
            DataError: the file is missing, damaged or not a video.
            MissingDependencyError: PyAV is not installed.
        """
        self._av: Any = require("av", extra="video")
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            self._container = self._av.open(str(path))
        except (self._av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{path}: not a video, or damaged ({_reason(error)})") from None
        try:
            if not self._container.streams.video:
                raise DataError(f"{path}: has no video stream")
            self._stream = self._container.streams.video[0]
            first = next(self._decoded(), None)
            if first is None:
                raise DataError(f"{path}: has no frame that can be decoded")
            self.width, self.height = first.width, first.height
            if first.rotation % 180:
                self.width, self.height = self.height, self.width
            self._container.seek(0)
        except DataError:
            self._container.close()
            raise
        self.rate = Fraction(self._stream.average_rate or 25)
        """Frames per second, on average."""
        self.frames: int | None = self._stream.frames or None
        """Number of frames that the file states; None if it does not."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, turned as the file says, as phones write it.

        Raises:
            DataError: the file is damaged after some frame.
        """
        for number, frame in enumerate(self._decoded()):
            pixels_HWC = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            seconds = frame.time if frame.time is not None else number / self.rate
            yield Frame(Image.fromarray(np.ascontiguousarray(pixels_HWC)), float(seconds))

    def _decoded(self) -> Iterator[Any]:
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                yield frame
                count += 1
        except self._av.error.FFmpegError as error:
            raise DataError(f"{self.path}: damaged after frame {count} ({_reason(error)})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class VideoWriter:
    """Writer of an MP4 file from RGB images of one size. The file appears when the block ends without an error."""

    def __init__(self, path: Path, *, rate: Fraction, width: int, height: int) -> None:
        """Open a hidden file beside `path`.

        Raises:
            MissingDependencyError: PyAV is not installed.
        """
        self._av: Any = require("av", extra="video")
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        # H.264 stores colours at half the resolution: both sides must be even
        self._size = (width - width % 2, height - height % 2)
        self._container = self._av.open(str(self._partial), mode="w", format="mp4")
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1

    def write(self, image: Image.Image, seconds: float) -> None:
        """Append a frame that is shown from `seconds` on; times must increase."""
        pixels_HWC = np.asarray(image.crop((0, 0, *self._size)))
        frame = self._av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
