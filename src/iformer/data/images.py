"""Image decoding: training, evaluation, prediction and parity checks all read their images here."""

from __future__ import annotations

import functools
import io
import os
import stat
import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from iformer.errors import DataError

MAX_PIXELS = 178_956_970
"""Larger images are refused by their header, before they are decoded (Pillow's own limit)."""

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".mpo",
))
"""Extensions of image files, in lower case."""
# fmt: on

# Pillow's other readers start programs (EPS), check no magic bytes (TGA) or read no photographs.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "MPO")

# Pillow warns at half of the size that it refuses; here MAX_PIXELS is the only limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class EncodedImage(Protocol):
    """The contents of an image file, wherever they are stored. `str()` names the place in messages."""

    def read(self) -> bytes:
        """Return the file's contents.

        Raises:
            DataError: they cannot be read.
        """


ImageSource = str | os.PathLike[str] | bytes | EncodedImage
"""A path, the contents of an image file, or an object that reads them."""


def has_image_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether the file's extension is that of an image format."""
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


def read_image(source: ImageSource, *, keep_gray: bool = False) -> Image.Image:
    """Decode an image to RGB with 8 bits per channel.

    The EXIF orientation is applied, transparency is composited on white, and of an animation the first frame
    is returned. 16-bit gray keeps its upper 8 bits, as Pillow does for 16-bit colour. Where a file does not
    state its value range (32-bit integers, floats): floats within 0..1 are scaled by 255, values within 0..255
    are kept, integers within 16 bits keep the upper 8, anything else is stretched from its minimum to its
    maximum. Values that are not finite count as the minimum.

    Args:
        source: a path, the contents of an image file, or an object that reads them.
        keep_gray: return gray images in mode "L", at a third of the memory. Their RGB form has three equal
            channels.

    Returns:
        An image in mode "RGB" (or "L"), detached from the file.

    Raises:
        DataError: the file is missing, unreadable, a folder, empty, truncated, not an image, in a colour space
            without an RGB conversion, or has more than `MAX_PIXELS` pixels. The message is one line,
            `path: reason`.
    """
    return _read(source, keep_gray=keep_gray, quick=False)


def check_image(source: ImageSource) -> None:
    """Raise the `DataError` that `read_image` would raise, faster where possible.

    All of the file's data is decoded; a JPEG only at an eighth of its size.
    """
    _read(source, keep_gray=True, quick=True)


def _read(source: ImageSource, *, keep_gray: bool, quick: bool) -> Image.Image:
    name = "image" if isinstance(source, bytes) else str(source)
    opened: io.BytesIO | str
    if isinstance(source, str | os.PathLike):
        size, opened = _file_size(os.fspath(source)), os.fspath(source)
    else:
        contents = source if isinstance(source, bytes) else source.read()
        size, opened = len(contents), io.BytesIO(contents)
    if size == 0:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        with Image.open(opened, formats=_known_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}; not decoded"
                )
            if quick:
                image.draft(None, (width // 8, height // 8))
            return _to_8bit(_upright(image), keep_gray=keep_gray)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has more pixels than the limit of {MAX_PIXELS:,}; not decoded") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image, or of a format that is not supported") from None
    except PermissionError:
        raise DataError(f"{name}: no permission to read it") from None
    except MemoryError:
        raise DataError(f"{name}: not enough memory to decode it") from None
    except Exception as error:  # damaged files make Pillow's readers raise errors of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: damaged image ({reason})") from None


def _file_size(path: str) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a regular file")
    return status.st_size


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the EXIF block is damaged, the pixels are not
        return image
    return image


def _to_8bit(image: Image.Image, *, keep_gray: bool) -> Image.Image:
    """Convert a decoded image of any mode to a plain `Image` in mode "RGB", or "L" if gray and `keep_gray`."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        image = Image.fromarray(_scale_to_8bit(np.asarray(image), mode, image.format))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
        if mode in ("LA", "La", "L", "1"):
            image = image.getchannel("R")
    elif mode == "1":
        image = image.convert("L")
    target = "L" if keep_gray and image.mode == "L" else "RGB"
    # Copy in any case: the file's own image class keeps the file and its metadata alive.
    return image.convert(target) if image.mode != target else image.copy()


def _scale_to_8bit(pixels_HW: np.ndarray, mode: str, file_format: str | None) -> np.ndarray:
    """Convert 16-bit, 32-bit or float gray values to uint8 by the rules of `read_image`."""
    if mode.startswith("I;16") or (mode == "I" and file_format in ("PNG", "PPM")):
        return (pixels_HW.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    values_HW = pixels_HW.astype(np.float64)
    finite_HW = np.isfinite(values_HW)
    if not finite_HW.any():
        return np.zeros(values_HW.shape, np.uint8)
    low, high = values_HW[finite_HW].min(), values_HW[finite_HW].max()
    values_HW = np.where(finite_HW, values_HW, low)
    if mode == "F" and low >= 0 and high <= 1:
        values_HW = values_HW * 255
    elif low >= 0 and high <= 255:
        pass
    elif mode == "I" and low >= 0 and high <= 65535:
        values_HW = np.floor(values_HW / 256)
    else:
        values_HW = (values_HW - low) * (255 / (high - low)) if high > low else np.zeros_like(values_HW)
    return np.rint(values_HW).astype(np.uint8)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the width and height, in pixels, of the image that `read_image` returns. Reads only the header.

    Raises:
        DataError: the file is not an image.
    """
    try:
        with Image.open(path, formats=_known_formats()) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:
        raise DataError(f"{os.fspath(path)}: damaged image ({' '.join(str(error).split())})") from None
    return (height, width) if turned else (width, height)
