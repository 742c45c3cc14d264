"""Writing of MP4 files frame by frame, with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import Image, ImageOps

from iformer.data.video.reader import ffmpeg_reason
from iformer.dependencies import require
from iformer.errors import DataError
from iformer.files import replacing

_TICKS = 90_000
"""Time units per second in written videos: 90 kHz, as in MPEG."""

_MAX_GAP = 2**31 - 1
"""Most time units between two frames of written videos, 6.6 hours: MP4 stores the differences in 31 bits."""

_GAP_REASON = "its frames are hours apart"


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
