"""Reading and writing of video files frame by frame, with PyAV."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps

from iformer.data.images import MAX_PIXELS, has_image_extension, open_image
from iformer.dependencies import require
from iformer.errors import DataError, MissingDependencyError
from iformer.files import replacing

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

_TICKS = 90_000
"""Time units per second in written videos: 90 kHz, as in MPEG."""

_MAX_GAP = 2**31 - 1
"""Most time units between two frames of written videos, 6.6 hours: MP4 stores the differences in 31 bits."""

_GAP_REASON = "its frames are hours apart"

_MAX_ASPECT = 4
"""Pixels that are wider or higher than this are an error of the file; they are taken for square ones."""

_ASPECT_TOLERANCE = 0.01
"""Pixels that are square up to this share are not resampled: encoders round the sides of scaled videos."""


def has_video_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the extension of a video format."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is read as a video: by its extension or, if no format has it, by its contents."""
    if has_video_extension(path) or has_image_extension(path):
        return has_video_extension(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return _holds_video(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1000)
def _holds_video(path: str, *_version: int) -> bool:
    """Return whether PyAV reads a file as a video. The version is a key of the cache."""
    with suppress(DataError), open_image(path):
        return False
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

        Raises:
            DataError: the file is damaged; the message says after which frame.
        """
        for number, raw in enumerate(self.raw_frames()):
            seconds = raw.frame.time if raw.frame.time is not None else number / self.rate
            try:
                image = raw.image()
            except DataError as error:
                raise DataError(f"{self.source}: damaged after frame {number} ({error})") from None
            yield Frame(image, float(seconds))

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
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                yield frame
                count += 1
        except (self._av.error.FFmpegError, OSError) as error:
            reason = ffmpeg_reason(error)
            if not self._stream.width or isinstance(error, self._av.error.ArgumentError):
                reason = f"{reason}; frames of more than {MAX_PIXELS:,} pixels are not decoded"
            raise DataError(f"{self.source}: damaged after frame {count} ({reason})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class VideoWriter:
    """Context manager that writes RGB images as an MP4 file.

    The file appears when the block ends without an error or, with `keep`, when it ends after a frame was written.
    """

    def __init__(self, path: Path, *, rate: Fraction, width: int, height: int, keep: bool = False) -> None:
        """Open the video. Odd sides lose one pixel, because H.264 needs even sides.

        Images of other sizes are scaled to fit, with black bars where their shape differs.

        Args:
            path: the file to write.
            rate: frames per second, for the encoder; each frame also has its own time.
            width: width of the images in pixels.
            height: height of the images in pixels.
            keep: whether an error inside the block leaves the video of the frames before it.

        Raises:
            DataError: the encoder does not take the rate or the size.
            OutputError: the file cannot be written.
            MissingDependencyError: PyAV is not installed.
        """
        self._av: Any = require("av", extra="video")
        self._path = path
        self._given = width, height
        # H.264 stores colours at half the resolution: both sides must be even
        self._size = (max(2, width - width % 2), max(2, height - height % 2))
        self._last, self._keep = -1, keep
        self._start: float | None = None
        with ExitStack() as stack:
            file = stack.enter_context(replacing(path))
            stack.enter_context(self._errors())
            self._file = _File(file)
            self._container = stack.enter_context(self._av.open(self._file, mode="w", format="mp4"))
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=rate)
            self._stream.width, self._stream.height = self._size
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
            self._stack = stack.pop_all()

    def write(self, image: Image.Image, seconds: float) -> None:
        """Append a frame that is shown from `seconds` on. A time that is not after the last one is increased.

        The written video begins at 0: players show nothing for hours if the times of a recorder's segment stay.

        Raises:
            DataError: the frame cannot be encoded, or comes hours after the one before it.
        """
        if self._start is None:
            self._start = seconds
        ticks = max(self._last + 1, round((seconds - self._start) * _TICKS))
        if ticks - self._last > _MAX_GAP:
            raise DataError(f"cannot be encoded as {self._path.name} ({_GAP_REASON})")
        with self._errors():
            if image.size == self._given:
                fitted = image.crop((0, 0, *self._size))
            else:
                fitted = ImageOps.pad(image, self._size, Image.Resampling.BILINEAR)
            frame = self._av.VideoFrame.from_ndarray(np.asarray(fitted), format="rgb24")
            self._last = ticks
            frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the encoder into `DataError`; errors of the disk are `OSError` and pass through."""
        try:
            yield
        except self._av.error.FFmpegError as error:
            if self._file.error is None:
                # several gaps in a row can exceed the limit together, because H.264 reorders frames
                has_gaps = isinstance(error, self._av.error.PatchWelcomeError)
                reason = _GAP_REASON if has_gaps else ffmpeg_reason(error)
                raise DataError(f"cannot be encoded as {self._path.name} ({reason})") from None
        if self._file.error is not None:
            raise self._file.error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not (self._keep and self._last >= 0):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._container.mux(self._stream.encode(None))


class _File:
    """File that FFmpeg writes. It remembers the first error, for which PyAV may raise another one, or none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        with self._remembered():
            return self._file.write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._remembered():  # writes what the file has buffered
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


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
