"""Reading of video files frame by frame, with PyAV."""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from iformer.data.images import MAX_PIXELS, has_image_extension, open_image
from iformer.dependencies import require
from iformer.errors import DataError, MissingDependencyError

# fmt: off
VIDEO_EXTENSIONS = frozenset((
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".avi", ".divx", ".mkv", ".webm", ".wmv", ".asf", ".flv",
    ".f4v", ".ts", ".mts", ".m2ts", ".m2t", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ogv", ".ogm",
    ".mxf", ".dv", ".mjpg", ".mjpeg",
))
"""Extensions of video files, in lower case."""
# fmt: on

FORMATS_OF_OTHER_FILES = frozenset(("concat", "dash", "hls", "imf", "rtsp", "sdp"))
"""Formats that are refused: their files are lists of other files or addresses, which FFmpeg would read."""

_FORMATS_OF_STILLS = frozenset(("image2", "ico", "tty", "bin", "xbin", "adf", "idf"))
"""Formats of pictures and of text art, which FFmpeg reads as videos."""

_MAX_ASPECT = 4
"""Pixels that are wider or higher than this are an error of the file; they are taken for square ones."""

_ASPECT_TOLERANCE = 0.01
"""Pixels that are square up to this share are not resampled: encoders round the sides of scaled videos."""

_FORMATS_WITH_DURATION = frozenset(("matroska", "avi", "flv"))
"""Formats whose files state their duration, and that FFmpeg reads up to where the file was cut off."""

_END = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
"""Time at which a stream of a Matroska file ends, its tag `DURATION`: hours, minutes and seconds."""

_MAX_MISSING_SECONDS = 1.0
"""A video whose frames end more than this before the stated end is an error: the file was cut off."""


def has_video_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the extension of a video format."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is read as a video: by its extension or, if no format has it, by its contents.

    An animated GIF is a video.
    """
    if has_video_extension(path):
        return True
    if has_image_extension(path) and Path(path).suffix.lower() != ".gif":
        return False
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return _holds_video(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1000)
def _holds_video(path: str, *_version: int) -> bool:
    """Return whether a file is an animated GIF, or no image and a video to PyAV. `_version` is for the cache."""
    with suppress(DataError), open_image(path) as image:
        return image.format == "GIF" and getattr(image, "is_animated", False)
    try:
        with VideoReader(path) as reader:
            return not (reader.format.endswith("_pipe") or reader.format in _FORMATS_OF_STILLS)
    except (DataError, MissingDependencyError):
        return False


class Frame(NamedTuple):
    """A frame of a video."""

    image: Image.Image
    """The picture, in mode RGB and upright."""
    seconds: float
    """Time in seconds at which the frame is shown."""


class RawFrame(NamedTuple):
    """A decoded frame that is not converted yet."""

    frame: Any
    """PyAV's `VideoFrame`."""
    aspect: Fraction = Fraction(1)
    """Width of a stored pixel, divided by its height."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the picture that `image` returns."""
        width, height = self._square_size
        return (height, width) if frame_orientation(self.frame)[0] else (width, height)

    @property
    def _square_size(self) -> tuple[int, int]:
        return max(1, round(self.frame.width * self.aspect)), self.frame.height

    def image(self) -> Image.Image:
        """Return the frame as an RGB image as it is shown: turned, mirrored, and with square pixels.

        Raises:
            DataError: the frame cannot be converted; the message is the reason.
        """
        av: Any = require("av", extra="video")
        width, height = self._square_size
        if width * height > MAX_PIXELS:
            raise DataError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
        scaling = {} if self.aspect == 1 else {"width": width, "interpolation": "BICUBIC"}
        try:
            pixels_HWC = self.frame.to_ndarray(format="rgb24", **scaling)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(ffmpeg_reason(error)) from None
        swapped, step_x, step_y = frame_orientation(self.frame)
        if swapped:
            pixels_HWC = pixels_HWC.swapaxes(0, 1)
        return Image.fromarray(np.ascontiguousarray(pixels_HWC[::step_y, ::step_x]))


class VideoReader:
    """Iterable over the frames of a video, in order and only once. Use it as a context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the video and decode its first frame, so that a bad file is reported at once.

        Raises:
            DataError: the file is missing, damaged, not a video, or has frames of more than `MAX_PIXELS` pixels.
            MissingDependencyError: PyAV is not installed.
        """
        self._av: Any = require("av", extra="video")
        self.damaged = 0
        """Number of frames so far that are damaged: they are shown as far as they could be decoded."""
        self.source = os.fspath(path)
        """The file, for messages and records."""
        self._container = self._open()
        try:
            self.format: str = self._container.format.name
            """FFmpeg's name of the file format."""
            cover = self._av.stream.Disposition.attached_pic
            videos = [one for one in self._container.streams.video if not one.disposition & cover]
            if not videos:
                raise DataError(f"{self.source}: has no video stream")
            self._stream: Any = videos[0]
            if self._stream.codec_context is None:  # a truncated header, or a codec that FFmpeg does not know
                raise DataError(f"{self.source}: not a video, or damaged (no decoder for its frames)")
            self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            self._check_size(self._stream.width, self._stream.height)
            self._frames = self._decoded()
            self._first = next(self._frames, None)
            if self._first is None:
                raise DataError(f"{self.source}: has no frame that can be decoded")
            self._aspect, self._stated_aspect = Fraction(1), self._stream.sample_aspect_ratio
            if self._stated_aspect == self._stream.codec_context.sample_aspect_ratio:
                self._stated_aspect = None  # of the codec, which may change it
            self.width, self.height = self._raw(self._first).size
            self._check_size(self.width, self.height)
        except DataError:
            self._container.close()
            raise
        self.rate = Fraction(self._stream.average_rate or 25)
        """Average number of frames per second; 25 if the file does not state it."""
        self.frames: int | None = self._stream.frames or None
        """Number of frames according to the file; None if the file does not state it."""

    def _open(self) -> Any:
        """Return the container of the file. It may hold no huge frames, other files and protocols such as http.

        Raises:
            DataError: there is no file, or it is not a video.
        """
        if not os.path.isfile(self.source):
            reason = "not a plain file" if os.path.exists(self.source) else "no such file"
            raise DataError(f"{self.source}: {reason}")
        options = {
            "format_whitelist": ",".join(sorted(self._av.formats_available - FORMATS_OF_OTHER_FILES)),
            "protocol_whitelist": "file",
            "max_pixels": str(MAX_PIXELS),
        }
        try:
            # an absolute path: FFmpeg takes the `12:` of `12:30.mp4` for a protocol
            return self._av.open(os.path.abspath(self.source), options=options)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.source}: not a video, or damaged ({ffmpeg_reason(error)})") from None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{self.source}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}; not decoded"
            )

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, turned as the file says: phones store upright videos sideways.

        Times never go back: where several recordings are joined to one file, each one follows the last.

        Raises:
            DataError: the file is damaged; the message says after which frame.
        """
        latest, shift = float("-inf"), 0.0
        for number, raw in enumerate(self.raw_frames()):
            stated = float(raw.frame.time if raw.frame.time is not None else number / self.rate)
            if stated + shift < latest:
                shift = latest + float(1 / self.rate) - stated
            seconds = latest = stated + shift
            try:
                image = raw.image()
            except DataError as error:
                raise DataError(f"{self.source}: damaged after frame {number} ({error})") from None
            yield Frame(image, seconds)

    def raw_frames(self) -> Iterator[RawFrame]:
        """Yield the frames without converting them.

        Raises:
            DataError: see `__iter__`.
        """
        # raw streams cannot be rewound, so the first frame is kept
        return map(self._raw, chain([self._first], self._frames))

    def _raw(self, frame: Any) -> RawFrame:
        """Return the latest frame of the decoder with the aspect of its pixels, which changes at key frames."""
        if frame.key_frame or frame is self._first:
            aspect = self._stated_aspect or self._stream.codec_context.sample_aspect_ratio or 1
            is_plain = not 1 / _MAX_ASPECT < aspect < _MAX_ASPECT or abs(aspect - 1) < _ASPECT_TOLERANCE
            self._aspect = Fraction(1) if is_plain else Fraction(aspect)
        return RawFrame(frame, self._aspect)

    def _decoded(self) -> Iterator[Any]:
        count, longest = 0, 0.0
        latest: float | None = None
        try:
            for frame in self._container.decode(self._stream):
                self.damaged += frame.is_corrupt
                yield frame
                count += 1
                if frame.time is not None:
                    if latest is not None:
                        longest = max(longest, frame.time - latest)
                    latest = frame.time
        except (self._av.error.FFmpegError, OSError) as error:
            reason = ffmpeg_reason(error)
            if not self._stream.width or isinstance(error, self._av.error.ArgumentError):
                reason = f"{reason}; frames of more than {MAX_PIXELS:,} pixels are not decoded"
            raise DataError(f"{self.source}: damaged after frame {count} ({reason})") from None
        # the last frame is shown for as long as others are
        end = (latest or 0.0) + max(longest, 1 / float(self._stream.average_rate or 1))
        if (stated := self._stated_end()) is not None and stated - end > _MAX_MISSING_SECONDS:
            raise DataError(
                f"{self.source}: damaged after frame {count} (the file states {stated:.1f} seconds, "
                f"the frames end at {end:.1f}; the file may be cut off)"
            )

    def _stated_end(self) -> float | None:
        """Return the time in seconds at which the frames end according to the file; None if it does not say so.

        FFmpeg ends files of these formats that were cut off without an error. A cut MP4 is an error anyway, and in
        other formats FFmpeg estimates the duration.
        """
        container, stream = self._container, self._stream
        if container.format.name.split(",")[0] not in _FORMATS_WITH_DURATION:
            return None
        if stream.frames and stream.average_rate:  # of an AVI; FFmpeg lowers its duration to what the file holds
            return float(stream.frames / stream.average_rate)
        if match := _END.fullmatch(stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, match.groups())
            return 3600 * hours + 60 * minutes + seconds
        if len(container.streams) == 1 and container.duration is not None:
            return float(container.duration / self._av.time_base)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def frame_orientation(frame: Any) -> tuple[bool, int, int]:
    """Return how a frame is shown, from its display matrix.

    PyAV's `rotation` is the angle alone: it takes mirrored frames for turned ones. Frames whose matrix turns
    by other angles, such as 45 degrees, or holds only zeros are shown as they are stored.

    Returns:
        Whether rows and columns are swapped, and the steps, 1 or -1, through columns and rows afterwards.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or len(content := bytes(matrix)) != 36:
        return False, 1, 1
    # a point (x, y) of the stored frame is shown at (a x + c y, b x + d y)
    a, b, _, c, d = struct.unpack("=9i", content)[:5]
    tolerance = max(map(abs, (a, b, c, d))) // 50  # about one degree
    if min(abs(a), abs(d)) > tolerance >= max(abs(b), abs(c)):
        return False, 1 if a > 0 else -1, 1 if d > 0 else -1
    if min(abs(b), abs(c)) > tolerance >= max(abs(a), abs(d)):
        return True, 1 if c > 0 else -1, 1 if b > 0 else -1
    return False, 1, 1


def ffmpeg_reason(error: Exception) -> str:
    """Return the reason of an error of PyAV in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
