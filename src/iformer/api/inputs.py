"""Inputs of `iformer.predict`: files, folders, globs, URLs, standard input, images in memory and live sources."""

from __future__ import annotations

import base64
import io
import os
import re
import string
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from iformer.api.answers import holds_answers
from iformer.data.images import open_image
from iformer.data.stream import find_images
from iformer.data.video.live import LiveSource, is_stream, live_source, masked, split_address, stream
from iformer.data.video.reader import is_video
from iformer.errors import DataError, OutputError, UserError, counted, listed, one_line
from iformer.tasks.interface import Warn, no_warnings
from iformer.time_limit import call_within

STANDARD_INPUT = "-"
MAX_DOWNLOAD_BYTES = 512 * 2**20
"""Largest image or video, in bytes, that is fetched from a URL or read from standard input: 512 MiB."""
_TIMEOUT_SECONDS = 30
"""Longest wait, in seconds, for the next bytes of a download."""
_OPEN_SECONDS = 60
"""Longest time, in seconds, until the header of an answer is complete, redirects included."""
_TOTAL_SECONDS = 600
"""Longest time, in seconds, for a whole download."""
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Input:
    """An image or video file, a camera or stream, or the reason why a source gives none of them."""

    source: str
    """Name in records and messages: a path, a URL, or "image 3" for the third image in memory."""
    path: Path | None = None
    live: LiveSource | None = None
    """The camera or stream, if the source is one; there is no file then."""
    error: str = ""
    """Why there is nothing to read, in one line; empty otherwise."""
    is_given: bool = True
    """Whether the user named this file. False: the file was found in a folder or by a pattern."""
    is_stored: bool = False
    """Whether this call wrote the file, for an image in memory, from a URL or from standard input."""


def is_lazy(sources: Any) -> bool:
    """Return whether sources are a generator or another iterable of unknown length, which may have no end."""
    return isinstance(sources, Iterable) and not isinstance(sources, Sized | io.IOBase)


def in_portions(sources: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` sources, the last one shorter; each is drawn when it is asked for."""
    remaining = iter(sources)
    while portion := list(islice(remaining, size)):
        yield portion


def collect_inputs(
    sources: Any,
    folder: Callable[[], Path],
    warn: Warn = no_warnings,
    *,
    numbers: Iterator[int] | None = None,
    is_portion: bool = False,
) -> list[Input]:
    """Return the image and video files of the sources, in the order of the sources.

    A file that is named twice gives two inputs; one that is named and also found in a folder or by a pattern gives
    one.

    Args:
        sources: one source or an iterable of them. A source is a file, folder or pattern, an http(s) URL, "-" for
            standard input, a PIL image, a NumPy array (H x W, H x W x C, N x H x W x C) or a tensor (C x H x W,
            N x C x H x W), uint8 or float from 0 to 1; or a camera or stream, see `iformer.data.video.live`.
        folder: returns a folder for images that are not files; called only if there are any.
        warn: called with a note about files that a folder or pattern has and that are left out.
        numbers: numbers of the images in memory. None: from 1.
        is_portion: whether there may be more sources than these. A portion may have errors only, and no camera or
            stream.

    Returns:
        One input for each file or image. A source that is missing or cannot be fetched or converted gives an
        input with an `error`.

    Raises:
        DataError: no source gives a file, a source has a type that is not supported, or a camera or stream is not
            the only source.
    """
    numbers = numbers or count(1)
    inputs: list[Input] = []
    places: dict[Path | str, int] = {}
    left_out: list[Path] = []
    try:
        for source in _flat(sources):
            for item in _inputs(source, folder, numbers, left_out):
                place = places.setdefault(item.path or item.source, len(inputs))
                if place == len(inputs) or (item.is_given and inputs[place].is_given):
                    inputs.append(item)
                elif item.is_given:  # its folder was among the earlier sources
                    inputs[place] = item
    except RecursionError:
        raise DataError("the lists of images are nested too deeply") from None
    if others := [str(path) for path in dict.fromkeys(left_out) if path not in places]:
        files = counted(len(others), "file")
        warn([f"left out {files} without the extension of an image or video: {listed(others, limit=5)}"])
    live = next((item for item in inputs if item.live), None)
    if live is not None and (len(inputs) > 1 or is_portion):
        raise DataError(f"{live.source}: a camera or stream must be the only source of a call")
    if not is_portion and all(item.error for item in inputs):
        reason = (
            f"{inputs[0].source}: {inputs[0].error}" if inputs else "no image was given; give files or folders"
        )
        raise DataError(reason)
    return inputs


def _flat(sources: Any) -> Iterator[Any]:
    if isinstance(sources, str | os.PathLike | Image.Image):
        yield sources
    elif isinstance(sources, np.ndarray | Tensor):
        yield from sources if sources.ndim == 4 else [sources]
    elif isinstance(sources, Iterable) and not isinstance(sources, bytes | bytearray | memoryview | io.IOBase):
        for source in sources:
            yield from _flat(source)
    else:
        raise DataError(
            f"{type(sources).__name__} is no image; give files, URLs, PIL images, arrays or tensors"
            + ("; PIL.Image.open reads an encoded image" if isinstance(sources, bytes | io.IOBase) else "")
        )


def _inputs(
    source: Any, folder: Callable[[], Path], numbers: Iterator[int], left_out: list[Path]
) -> Iterator[Input]:
    if isinstance(source, str):
        try:
            if (live := live_source(source)) is not None:
                yield Input(source=live.name, live=live)
                return
        except DataError as error:
            name, _, reason = str(error).partition(": ")
            yield Input(source=name, error=reason)
            return
    if isinstance(source, str) and (_URL.match(source) or source == STANDARD_INPUT):
        yield _fetched(source, folder)
    elif isinstance(source, str) and not source:
        raise DataError("the name of an image is empty; give files, folders, patterns or URLs")
    elif isinstance(source, str | os.PathLike):
        text = os.path.expanduser(os.fspath(source))
        is_given = os.path.lexists(text) and not os.path.isdir(text)
        try:
            for path in find_images([text], videos=True, left_out=left_out):
                yield Input(source=str(path), path=path, is_given=is_given)
        except DataError as error:
            yield Input(source=text, error=str(error).removeprefix(f"{text}: "))
    else:
        number = next(numbers)
        try:
            image = source if isinstance(source, Image.Image) else _from_array(source)
            yield Input(source=f"image {number}", path=_stored(image, folder(), number), is_stored=True)
        except OutputError:
            raise
        except DataError as error:
            yield Input(source=f"image {number}", error=str(error))
        except Exception as error:  # Pillow and torch raise errors of any type for damaged or unusual images
            yield Input(source=f"image {number}", error=f"cannot be read ({one_line(error)})")


def _fetched(source: str, folder: Callable[[], Path]) -> Input:
    """Store the contents of a URL or of standard input in a file; return an input with that file or an error.

    The URL of a stream gives an input without a file.
    """
    shown = masked(source)
    name = Path(source.partition("?")[0].partition("#")[0]).name if source != STANDARD_INPUT else "stdin"
    stored = re.sub(r"[^\w.-]", "_", name).encode()[-100:].decode(errors="ignore") or "download"
    try:
        contents = _from_standard_input() if source == STANDARD_INPUT else _download(source)
        if isinstance(contents, LiveSource):
            return Input(source=shown, live=contents)
        if len(contents) > MAX_DOWNLOAD_BYTES:
            return Input(source=shown, error=f"has more than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
    except (OSError, ValueError, HTTPException) as error:
        return Input(source=shown, error=f"cannot be fetched ({one_line(error)})")
    return Input(source=shown, path=_written(_free_name(folder(), stored), contents), is_stored=True)


def _from_standard_input() -> bytes:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer.read(MAX_DOWNLOAD_BYTES + 1)


def _download(url: str) -> bytes | LiveSource:
    """Return the contents of a URL, at most one byte more than `MAX_DOWNLOAD_BYTES`; a `LiveSource` of a stream.

    The download runs in a thread, because only each read has a time limit: a server that sends a byte now and then
    would never exceed that limit.

    Raises:
        OSError, ValueError, HTTPException: the URL cannot be fetched.
        TimeoutError: the answer does not begin within `_OPEN_SECONDS`, or is not complete after `_TOTAL_SECONDS`.
    """
    quoted = urllib.parse.quote(url, safe=string.punctuation)
    request = _request(quoted)
    response = call_within(_OPEN_SECONDS, lambda: urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS))

    def read() -> bytes:
        with response:
            contents: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
        if response.length and len(contents) <= MAX_DOWNLOAD_BYTES:
            raise OSError(f"the connection ended {response.length:,} bytes early")
        if not contents:
            raise OSError("the answer is empty, or the connection ended early")
        return contents

    content_type = response.headers.get_content_type()
    if is_stream(content_type, has_length=response.length is not None, url=quoted):
        response.close()
        return stream(quoted)
    return call_within(_TOTAL_SECONDS, read)  # closes it, too: closing waits for a read in another thread


def _request(url: str) -> urllib.request.Request:
    """Return a request for a URL. A user and password in it are sent by HTTP's basic authentication.

    Raises:
        ValueError: the URL is not valid.
    """
    parts = split_address(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if user:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _free_name(folder: Path, name: str) -> Path:
    stem, suffix = Path(name).stem, Path(name).suffix
    names = (name if number == 1 else f"{stem}-{number}{suffix}" for number in count(1))
    return next(folder / each for each in names if not (folder / each).exists())


def _written(path: Path, contents: bytes) -> Path:
    """Write a file, without a sync because it is read at once, and return its path.

    Raises:
        OutputError: the file cannot be written; nothing is left of it.
    """
    try:
        path.write_bytes(contents)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error
    return path


_STORABLE = {"HSV": "RGB", "La": "LA", "RGBa": "RGBA"}
"""Modes that no file can have, each with the mode that holds the same picture."""


def _stored(image: Image.Image, folder: Path, number: int) -> Path:
    if image.mode in _STORABLE:
        image = image.convert(_STORABLE[image.mode])
    as_png = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    path = folder / f"image-{number}{'.png' if as_png else '.tif'}"
    if not holds_answers(folder.parent):  # files in the folder are not from an earlier call, so none is replaced
        path = _free_name(folder, path.name)
    options: dict[str, Any] = {"compress_level": 1} if as_png else {}
    encoded = io.BytesIO()
    ImageOps.exif_transpose(image).save(  # files are read upright, too
        encoded, format="PNG" if as_png else "TIFF", **options
    )
    return _written(path, encoded.getvalue())


def _from_array(source: Any) -> Image.Image:
    """Return an array (H x W or H x W x C) or a tensor (H x W or C x H x W) as an image."""
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bf16
        array = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()
        form = "C x H x W"
    else:
        array, form = np.asarray(source), "H x W x C"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        shape = tuple(source.shape)
        raise DataError(f"an image in memory has shape {shape}; expected H x W, or {form} with C of 1, 3 or 4")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise DataError(
                "an image of floating-point numbers has values outside 0 to 1; give uint8, or scale it"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise DataError(
            f"an image in memory has values of type {array.dtype}; expected uint8, or float from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def check_videos(inputs: Sequence[Input], option: str, warn: Warn) -> None:
    """Check that an option for videos has a video, camera or stream to work on.

    Images that were found in folders or by patterns may be among them; `warn` is called with their number.

    Raises:
        UserError: an input that the user named is an image, or there are only images.
    """
    images = [item for item in inputs if item.path is not None and not is_video(item.path)]
    has_video = any(item.live is not None or (item.path and is_video(item.path)) for item in inputs)
    refused = [item for item in images if item.is_given or not has_video]
    if refused:
        raise UserError(
            f"{refused[0].source} is no video; {option} is for videos, cameras and streams, leave it out"
        )
    if images:
        warn([f"{option} has no effect on {counted(len(images), 'image')} beside the videos"])


def without_videos(inputs: Sequence[Input], networks: str, warn: Warn) -> list[Input]:
    """Return the inputs without videos. Those that the user named become errors.

    Args:
        inputs: the inputs.
        networks: the networks that take no videos, such as "classifiers", for messages.
        warn: called with a note about the videos that were found in folders or by patterns.

    Raises:
        UserError: an input is a camera or stream.
        DataError: there are only videos.
    """
    kept, left_out = [], []
    for item in inputs:
        if item.live is not None:
            raise UserError(f"{item.source}: a camera or stream; {networks} take images")
        if item.path is None or not is_video(item.path) or _is_image(item.path):
            kept.append(item)
        elif item.is_given:
            kept.append(Input(source=item.source, error=_NO_IMAGE))
        else:
            left_out.append(item.source)
    if left_out and not any(item.path for item in kept):
        raise DataError(f"{left_out[0]}: only videos were found; {networks} take images")
    if left_out:
        warn([f"left out {counted(len(left_out), 'video')}, {networks} take images: {listed(left_out, limit=5)}"])
    return kept


_NO_IMAGE = "a video, not an image; detectors and segmenters take videos"


def _is_image(path: Path) -> bool:
    with suppress(DataError), open_image(path):
        return True
    return False
