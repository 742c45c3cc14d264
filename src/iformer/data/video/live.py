"""Cameras and network streams: a thread reads frames, and the newest ones are answered."""

from __future__ import annotations

import errno
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from glob import glob
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from iformer.data.images import MAX_PIXELS
from iformer.data.video.reader import (
    FORMATS_OF_OTHER_FILES,
    Frame,
    RawFrame,
    VideoReader,
    ffmpeg_reason,
)
from iformer.dependencies import require
from iformer.errors import DataError, one_line

OPEN_SECONDS = 20.0
"""Longest wait, in seconds, for the first frame of a camera or stream."""
STALL_SECONDS = 10.0
"""Longest wait, in seconds, for the next frame. After it, the stream has failed."""
_QUEUE = 4
"""Frames that wait to be answered. If one more arrives from a live source, the oldest is dropped."""
_GRACE_SECONDS = 5.0
"""Time, in seconds, after which FFmpeg gives up a read that nobody waits for any more."""
_JUMP_SECONDS = 5.0
"""Longest time, in seconds, from a frame to the next one. Longer ones, and steps back, are a new count of time."""

_HTTP = "http,https,httpproxy,tcp,tls,crypto"
_PROTOCOLS = {
    "http": _HTTP,
    "https": _HTTP,
    "rtsp": "tcp,udp,rtp",
    "rtsps": "tls,tcp,udp,rtp",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,tls,tcp",
    "udp": "udp",
    "tcp": "tcp",
}
"""For each scheme of an address, the protocols that FFmpeg may use: never `file`, `concat` or `data`."""
_ALLOWED_FORMATS = {"http": {"hls"}, "https": {"hls"}, "rtsp": {"rtsp"}, "rtsps": {"rtsp"}}
"""Formats of `FORMATS_OF_OTHER_FILES` that a scheme may have."""
_STREAM_TYPES = frozenset(
    (
        "multipart/x-mixed-replace",
        "application/vnd.apple.mpegurl",
        "application/x-mpegurl",
        "audio/mpegurl",
        "audio/x-mpegurl",
    )
)
"""Content types of HTTP streams: motion JPEG and HLS playlists."""
_ENDLESS_TYPES = frozenset(("video/mp2t", "video/x-flv"))
"""Content types of HTTP streams if the server does not say how long they are."""
_DEVICE = re.compile(r"/dev/video\d+")
_PASSWORD = re.compile(r"(?<=://)([^/?#:@]*):(?:[^/?#]*|(?!\d+/)[^?#]*)@")
"""User name and password of an address, also if the password has a slash that is not written as %2F."""
_SLASH_IN_PASSWORD = re.compile(r"://[^/?#:@]*:(?!\d+/)[^/?#@]*/[^?#]*@")
_SECRET = re.compile(r"([?&;][^=&#]*(?:pass|pwd|secret|token|key|auth)[^=&#]*=)[^&#]+", re.IGNORECASE)
"""A secret in the query of an address."""


@dataclass(frozen=True, kw_only=True)
class LiveSource:
    """A camera or a network stream."""

    name: str
    """Name in records and messages; passwords are masked."""
    url: str = field(repr=False)
    """What FFmpeg opens."""
    stem: str
    """Name of output files, without extension."""
    format: str | None = None
    """FFmpeg's input format. None: FFmpeg recognises it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of FFmpeg."""


def live_source(text: str) -> LiveSource | None:
    """Return the camera or stream that a source names; None if it names files or an http address.

    Args:
        text: the number of a camera, a device such as `/dev/video0`, or an address such as `rtsp://host/path`.
            Digits that are the name of a file or folder mean that file or folder.

    Raises:
        DataError: there is no such camera, or the address is not valid.
    """
    if re.fullmatch("[0-9]{1,3}", text) and not os.path.lexists(text):
        return camera(int(text))
    if _DEVICE.fullmatch(text):
        return _device(text, text)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    return stream(text) if scheme in _PROTOCOLS and scheme not in ("http", "https") else None


def camera(number: int, platform: str = sys.platform) -> LiveSource:
    """Return a camera by its number, from 0.

    Raises:
        DataError: there is no such camera, or the platform has none that FFmpeg can read.
    """
    name = f"camera {number}"
    if platform == "linux":
        return _device(f"/dev/video{number}", name)
    stem = f"camera-{number}"
    if platform == "darwin":
        # without a frame rate FFmpeg asks for 29.97, which most cameras refuse
        options = {"framerate": "30"}
        return LiveSource(name=name, url=f"{number}:none", stem=stem, format="avfoundation", options=options)
    if platform == "win32":
        found = [f"video={device.name}" for device in _windows_devices() if "video" in device.media_types]
        if not 0 <= number < len(found):
            cameras = ", ".join(url.removeprefix("video=") for url in found)
            raise DataError(f"{name}: no such camera; cameras of this machine: {cameras or 'none'}")
        return LiveSource(name=name, url=found[number], stem=stem, format="dshow")
    raise DataError(f"{name}: cameras are read on Linux, macOS and Windows, not on {platform}")


def _device(path: str, name: str) -> LiveSource:
    if not os.path.exists(path):
        others = ", ".join(sorted(glob("/dev/video*")))
        raise DataError(f"{name}: there is no {path}; cameras of this machine: {others or 'none'}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DataError(f"{name}: no permission to use {path}; its group (usually video) has it")
    stem = PurePosixPath(path).name if name == path else name.replace(" ", "-")
    return LiveSource(name=name, url=path, stem=stem, format="v4l2")


def _windows_devices() -> list[Any]:
    av: Any = require("av", extra="video")
    try:
        return list(av.enumerate_input_devices("dshow"))
    except AttributeError:
        raise DataError("cameras on Windows need a newer PyAV; run: pip install -U av") from None
    except (av.error.FFmpegError, ValueError):  # no device
        return []


def stream(url: str) -> LiveSource:
    """Return the stream at an address whose scheme is in `_PROTOCOLS`.

    Raises:
        DataError: the address is not valid.
    """
    scheme = url.partition("://")[0].lower()
    try:
        parts = split_address(url)
    except ValueError as error:
        raise DataError(f"{masked(url)}: not an address ({one_line(error)})") from None
    if scheme in ("udp", "tcp") and not parts.port:
        raise DataError(f"{masked(url)}: not an address (no port); give one, as in {scheme}://0.0.0.0:5000")
    options = {}
    if scheme in ("rtsp", "rtsps"):
        options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets
    if scheme == "https":  # FFmpeg checks no certificate by default
        options["tls_verify"] = "1"
        if certificates := ssl.get_default_verify_paths().cafile:
            options["ca_file"] = certificates
    stem = PurePosixPath(parts.path).stem or parts.netloc.rpartition("@")[2]
    stem = re.sub(r"[^\w.-]", "_", stem).encode()[:100].decode(errors="ignore").strip(".")
    return LiveSource(name=masked(url), url=url, stem=stem or "stream", options=options)


def is_stream(content_type: str, *, has_length: bool, url: str) -> bool:
    """Return whether an answer of an HTTP server is a stream, and not a file to download.

    Args:
        content_type: such as "image/png", in lower case.
        has_length: whether the server says how long the answer is.
        url: the address, which matters for playlists of servers that do not know their type.
    """
    if content_type in _STREAM_TYPES or (content_type in _ENDLESS_TYPES and not has_length):
        return True
    return urllib.parse.urlsplit(url).path.lower().endswith(".m3u8")


def split_address(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address.

    Raises:
        ValueError: the address is not valid. The message holds nothing of a password.
    """
    if _SLASH_IN_PASSWORD.search(url):
        raise ValueError("a / in a password is written %2F")
    parts = urllib.parse.urlsplit(url)
    _ = parts.port  # checks it
    return parts


def masked(url: str) -> str:
    """Return an address with `***` in place of its password and of secrets in its query."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


class _StreamReader(VideoReader):
    """`VideoReader` of a camera or stream. It waits where no frame is ready, and leaves out damaged packets."""

    def __init__(self, source: LiveSource, stopped: threading.Event) -> None:
        self._live, self._stopped = source, stopped
        super().__init__(source.name)
        self.is_playlist = "hls" in self._container.format.name
        # recordings say how long they are
        self.is_live = source.format is not None or self._container.duration is None

    def _open(self) -> Any:
        source = self._live
        scheme = source.url.partition("://")[0].lower()
        formats = self._av.formats_available - FORMATS_OF_OTHER_FILES | _ALLOWED_FORMATS.get(scheme, set())
        options = {
            **source.options,
            "format_whitelist": source.format or ",".join(sorted(formats)),
            "protocol_whitelist": _PROTOCOLS[scheme] if source.format is None else "",
            "max_pixels": str(MAX_PIXELS),
        }
        limits = (OPEN_SECONDS + _GRACE_SECONDS, STALL_SECONDS + _GRACE_SECONDS)
        try:
            return self._av.open(source.url, format=source.format, options=options, timeout=limits)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{source.name}: cannot be opened ({ffmpeg_reason(error)})") from None

    def _decoded(self) -> Iterator[Any]:
        count = 0
        try:
            for packet in self._packets():
                try:
                    frames = packet.decode()
                except self._av.error.InvalidDataError:
                    self.damaged += count > 0  # before the first key frame, nothing can be decoded
                    continue
                self.damaged += sum(frame.is_corrupt for frame in frames)
                yield from frames
                count += len(frames)
        except (self._av.error.FFmpegError, OSError) as error:
            if count and self._live.url.lower().startswith("http") and error.errno == errno.EIO:
                return  # a server that ends the connection, from which FFmpeg expected more
            raise DataError(f"{self.source}: failed after frame {count} ({ffmpeg_reason(error)})") from None

    def _packets(self) -> Iterator[Any]:
        while not self._stopped.is_set():
            try:
                yield from self._container.demux(self._stream)
                return
            except BlockingIOError:  # macOS: no frame yet
                self._stopped.wait(0.005)


class LiveReader:
    """Iterable over the frames of a camera or stream, in order and only once. Use it as a context manager.

    A thread reads the frames. If they come faster than they are taken, the oldest ones are dropped, so that each
    frame is new when it is answered. Recordings (streams that say how long they are) lose no frames: the thread
    waits.
    """

    def __init__(self, source: LiveSource) -> None:
        """Open the source and wait for its first frame.

        Raises:
            DataError: the source cannot be opened or is not a video, or no frame arrives within `OPEN_SECONDS`.
            MissingDependencyError: PyAV is not installed.
        """
        require("av", extra="video")
        self.source = source.name
        self.dropped = 0
        """Number of frames that were dropped."""
        self.damaged = 0
        """Number of frames that arrived damaged; see `VideoReader.damaged`."""
        self.frames: int | None = None
        self._live = source
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[RawFrame, float]] = deque()
        self._drops, self._ended, self._error = True, False, ""
        self.rate = Fraction(25)
        """Average number of frames per second; 25 if the source does not state a plausible one."""
        self._thread = threading.Thread(target=self._read, daemon=True, name="stream")
        self._thread.start()
        try:
            first = self._next(OPEN_SECONDS)
        except BaseException:
            self._stopped.set()
            raise
        if first is None:
            raise DataError(f"{self.source}: has no frame")
        self._first: tuple[RawFrame, float] | None = first
        self.width, self.height = first[0].size

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames. Times count from the first frame: by the clock or, in recordings, by the stream.

        Raises:
            DataError: the source failed, or no frame arrived for `STALL_SECONDS`.
        """
        item, self._first, number = self._first, None, 0
        while item is not None:
            raw, seconds = item
            try:
                image = raw.image()
            except DataError as error:
                raise DataError(f"{self.source}: damaged after frame {number} ({error})") from None
            yield Frame(image, seconds)
            number += 1
            item = self._next(STALL_SECONDS, after=f" after frame {number}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread. A thread that waits in FFmpeg ends later, when FFmpeg gives up."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(1.0)

    def _next(self, limit: float, after: str = "") -> tuple[RawFrame, float] | None:
        """Return the next frame and its time; None after the last frame."""
        deadline = time.monotonic() + limit
        with self._changed:
            while not self._waiting:
                if self._error:
                    raise DataError(self._error)
                if self._ended:
                    return None
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DataError(f"{self.source}: no frame for {limit:g} s{after}")
                self._changed.wait(min(left, 0.25))  # short, because on Windows Ctrl-C does not end a wait
            item = self._waiting.popleft()
            self._changed.notify_all()
            return item

    def _read(self) -> None:
        """Read the source until it ends or the reader is closed. Runs in the thread."""
        error = ""
        try:
            with _StreamReader(self._live, self._stopped) as reader:
                self._drops = reader.is_live
                if 1 <= reader.rate <= 240:
                    self.rate = reader.rate
                for frame, seconds in self._timed(reader):
                    self.damaged = reader.damaged
                    if not self._put((frame, seconds)):
                        break
                self.damaged = reader.damaged
        except DataError as failure:
            error = str(failure)
        except Exception as failure:  # raised by `_next`, in the thread of the caller
            error = f"{self.source}: failed ({one_line(failure)})"
        finally:
            with self._changed:
                self._ended, self._error = True, error
                self._changed.notify_all()

    def _timed(self, reader: _StreamReader) -> Iterator[tuple[RawFrame, float]]:
        """Yield each frame and its time. Frames of live playlists come in bursts and wait until they are due."""
        begin = due = time.monotonic()
        start: float | None = None
        last = 0.0
        for number, raw in enumerate(reader.raw_frames()):
            start = raw.frame.time if start is None else start
            stated = float(number / self.rate if raw.frame.time is None else raw.frame.time - start)
            if reader.is_live and reader.is_playlist:
                step, now = stated - last, time.monotonic()
                due = due + step if 0 <= step <= _JUMP_SECONDS else now
                self._stopped.wait(max(0.0, due - now))
            yield raw, time.monotonic() - begin if reader.is_live else stated
            last = stated

    def _put(self, item: tuple[RawFrame, float]) -> bool:
        """Hand a frame over; return False if the reader is closed."""
        with self._changed:
            if self._drops and len(self._waiting) == _QUEUE:
                self._waiting.popleft()
                self.dropped += 1
            while len(self._waiting) >= _QUEUE and not self._stopped.is_set():
                self._changed.wait(0.25)
            self._waiting.append(item)
            self._changed.notify_all()
        return not self._stopped.is_set()
