"""The one decoder: training, evaluation, prediction and parity checks all read their images here."""

from __future__ import annotations

import functools
import io
import os
import stat
import warnings
from abc import abstractmethod
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from iformer.errors import DataError

MAX_PIXELS = 178_956_970
"""Images of more pixels are refused by their header, before any are decoded (Pillow's own limit)."""

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".mpo",
))
"""Extensions of files that are taken for images, in lower case."""
# fmt: on

# Pillow's other readers start programs (EPS), recognise no magic bytes (TGA) or read no photographs.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "MPO")

# Pillow warns at half the size that it refuses; MAX_PIXELS is the one limit here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class StoredImage(os.PathLike[str]):
    """An image file inside of another file: an archive, a table. Its path is for people only."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its path below the data set's folder, with forward slashes."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The image file's contents.

        Raises:
            DataError: they cannot be read.
        """

    def __str__(self) -> str:
        return os.fspath(self)


def has_image_extension(path: str | os.PathLike[str]) -> bool:
    """Whether the file's name says that it is an image."""
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


def read_image(source: str | os.PathLike[str] | bytes, *, keep_gray: bool = False) -> Image.Image:
    """Decode an image file, or the bytes of one, to RGB at 8 bits a channel.

    The EXIF orientation is applied, transparency is laid on white, an animation gives its first frame.
    16-bit gray keeps its upper 8 bits, as Pillow does for 16-bit colour. Where a file does not say the range
    of its values (32-bit integers, floats): floats within 0..1 are scaled by 255, values within 0..255 are
    kept, integers within 16 bits keep the upper 8, anything else is stretched from its minimum to its
    maximum; values that are not finite count as the minimum.

    Args:
        source: a path, or the contents of an image file.
        keep_gray: return a gray image in mode "L". It is the same image, whose RGB form has three equal
            channels, at a third of the memory.

    Returns:
        A decoded image in mode "RGB" (or "L"), detached from the file.

    Raises:
        DataError: the file is missing, unreadable, a folder, empty, truncated, no image, in a colour space
            that has no RGB form here, or has more than `MAX_PIXELS` pixels. The message is one line,
            `path: reason`.
    """
    return _read(source, keep_gray=keep_gray, quick=False)


def check_image(source: str | os.PathLike[str] | bytes) -> None:
    """Raise the `DataError` that `read_image` would raise, in less time where that is possible.

    All of the file's data is decoded; a JPEG's only to an eighth of its size.
    """
    _read(source, keep_gray=True, quick=True)


def _read(source: str | os.PathLike[str] | bytes, *, keep_gray: bool, quick: bool) -> Image.Image:
    name = "image" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, StoredImage):
        source = source.read_bytes()
    opened: io.BytesIO | str
    if isinstance(source, bytes):
        size, opened = len(source), io.BytesIO(source)
    else:
        size, opened = _file_size(os.fspath(source)), os.fspath(source)
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
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them run into
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
    except Exception:  # a damaged EXIF block says nothing about the orientation; the pixels are sound
        return image
    return image


def _to_8bit(image: Image.Image, *, keep_gray: bool) -> Image.Image:
    """A decoded image of any mode as a plain `Image` in mode "RGB", or "L" where `keep_gray` and gray."""
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
    # A copy in the same mode too: a file's own image class drags its file and its metadata along.
    return image.convert(target) if image.mode != target else image.copy()


def _scale_to_8bit(pixels_HW: np.ndarray, mode: str, file_format: str | None) -> np.ndarray:
    """Gray values of 16 or 32 bits, or floats, as uint8 of the same shape; `read_image` has the rules."""
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
    """Width and height in pixels of the image that `read_image` gives, by the file's header.

    Raises:
        DataError: the file is no image.
    """
    try:
        with Image.open(path, formats=_known_formats()) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:
        raise DataError(f"{os.fspath(path)}: damaged image ({' '.join(str(error).split())})") from None
    return (height, width) if turned else (width, height)
