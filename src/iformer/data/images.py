"""Image decoding: every image of the project is opened here."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from iformer.config.preprocessing import Preprocessing
from iformer.data.conversion import (
    CARRIERS,
    ValueRange,
    has_16_bits,
    highest_colour,
    highest_value,
    scaled_colours,
    to_8bit,
    with_extra_channel,
)
from iformer.errors import DataError
from iformer.files import require_regular_file

MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image (Pillow's own limit). Larger images are refused before they are decoded."""

MAX_DECODING_BYTES = 2 * 2**30
"""Largest memory in bytes for decoding an image, estimated from its header. Images that need more are refused."""

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".mpo", ".heic", ".heif", ".hif",
))
"""Extensions of image files, in lower case."""
# fmt: on

# Pillow's other readers start programs (EPS), check no magic bytes (TGA) or read no photographs.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "MPO", "HEIF")

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_DECODER_BYTES = {"AVIF": 12, "WEBP": 8, "JPEG2000": 12, "HEIF": 12, "TIFF": 4}
"""Bytes per pixel that a format's decoder takes in addition to the image."""

_PROGRESSIVE_BYTES = 6
"""Bytes per pixel that the coefficients of a progressive JPEG take."""

_CHECKED_SIDE = 64
"""Smallest side in pixels to which `check_image` reduces a JPEG while decoding it."""

THUMBNAIL_SIDE = 32

# Pillow warns at half of the size that it refuses; here MAX_PIXELS is the only limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class EncodedImage(Protocol):
    """An image file, wherever its contents are stored. `str()` gives its location, for messages."""

    def read(self) -> bytes:
        """Return the file's contents.

        Raises:
            DataError: the contents cannot be read.
        """


ImageSource = str | os.PathLike[str] | bytes | EncodedImage
"""A path, the contents of an image file, or an object that reads the contents."""


class ImageFacts(NamedTuple):
    """Facts about an image, from `check_image`."""

    size: tuple[int, int]
    """Width and height in pixels, after the EXIF orientation."""
    thumbnail: np.ndarray
    """Gray thumbnail, uint8, shape (32, 32)."""
    highest: int | None
    """Highest value of a 16-bit image; for a colour image an upper bound. None: not a 16-bit image."""


def has_image_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the extension of an image format."""
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


@contextlib.contextmanager
def open_image(source: ImageSource) -> Iterator[ImageFile.ImageFile]:
    """Open an image, which is not decoded yet, and check its format and size.

    All errors inside the context become a `DataError`: Pillow decodes when pixels are first accessed.

    Raises:
        DataError: the file is missing, unreadable, a folder, empty, truncated, not an image, has more than
            `MAX_PIXELS` pixels or takes more than `MAX_DECODING_BYTES` to decode. The message is one line,
            `path: reason`.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with _open(source, name) as image:
            _check_size(image, name)
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has more pixels than the limit of {MAX_PIXELS:,}; not decoded") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: {_unknown_format(source)}") from None
    except PermissionError:
        raise DataError(f"{name}: no permission to read it") from None
    except MemoryError:
        raise DataError(f"{name}: not enough memory to decode it") from None
    except Exception as error:  # damaged files make Pillow's readers raise errors of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: damaged image ({reason})") from None


def read_image(
    source: ImageSource, *, keep_gray: bool = False, channels: int = 3, value_range: ValueRange | None = None
) -> Image.Image:
    """Decode an image to RGB, or to another number of channels, with 8 bits per channel.

    The EXIF orientation is applied, transparency is composited on white, and the first frame of an animation
    is returned. 16-bit images keep their upper 8 bits. Where a file does not state its value range (32-bit
    integers, floats): floats within 0..1 are scaled by 255, values within 0..255 are kept, integers within
    16 bits keep the upper 8, anything else is stretched from its minimum to its maximum. Values that are not
    finite count as the minimum.

    Args:
        source: a path, the contents of an image file, or an object that reads the contents.
        keep_gray: return gray images in mode "L", at a third of the memory. Their RGB form has three equal
            channels.
        channels: 1 or 3, the same image in gray or RGB; 2 or 4, gray or RGB and one more channel, such as
            transparency, depth or infrared, as stored in the file; nothing is composited.
        value_range: values of black and white in images of more than 8 bits (gray, or PNG and TIFF in colour),
            such as (0, 4095) for 12-bit data in 16-bit files. None means the rules above.

    Returns:
        An image detached from the file, in mode "RGB" (or "L"), or for 2 and 4 channels in the mode of
        `iformer.data.conversion.CARRIERS`.

    Raises:
        DataError: the image cannot be decoded (see `open_image`), its colour space has no RGB conversion, or it
            lacks the requested channels.
    """
    with open_image(source) as image:
        if channels not in (1, 3):
            _require_channels(image, channels, source)
        deep = value_range is not None and has_16_bit_colours(image)
        _apply_orientation(image)
        decoded: Image.Image = image
        if deep and value_range is not None:
            with open_image(source) as low:
                if channels not in (1, 3):
                    keep_extra_channel(low)
                take_low_bytes(low)
                _apply_orientation(low)
                decoded = scaled_colours(image, low, value_range, all_channels=channels == 4)
        if channels in (1, 3):
            return to_8bit(decoded, keep_gray=keep_gray, value_range=value_range)
        return with_extra_channel(decoded, channels)


def read_input(source: ImageSource, preprocessing: Preprocessing) -> Image.Image:
    """Decode an image with the channels and value range of a network; gray images may have mode "L".

    Raises:
        DataError: the image cannot be decoded; see `read_image`.
    """
    channels, value_range = len(preprocessing.mean), preprocessing.value_range
    return read_image(source, keep_gray=True, channels=channels, value_range=value_range)


def check_channels(source: ImageSource, channels: int) -> None:
    """Check that an image file has `channels` channels, 2 or 4, without decoding it.

    Raises:
        DataError: the file has another number of channels, or cannot be opened as an image; see `open_image`.
    """
    with open_image(source) as image:
        _require_channels(image, channels, source)


def _require_channels(image: ImageFile.ImageFile, channels: int, source: ImageSource) -> None:
    name = "image" if isinstance(source, bytes) else str(source)
    if channels not in CARRIERS:
        raise DataError(f"{name}: image files have 1 to 4 channels, the network takes {channels}")
    keep_extra_channel(image)
    paletted = image.mode == "P" and image.has_transparency_data and channels == 4
    found = len(image.getbands())
    if not paletted and (found != channels or image.mode == "CMYK"):
        kinds = {2: "gray with transparency", 4: "a PNG or TIFF of four channels (RGBA)"}
        colours = f"{found} channel{'s' if found != 1 else ''} ({image.mode})"
        raise DataError(f"{name}: has {colours}, the network takes {channels}; expected {kinds[channels]}")


def check_image(source: ImageSource) -> ImageFacts:
    """Check that `read_image` can read an image, in less time where possible, and return facts about the image.

    All of the file's data is decoded, a large JPEG at a reduced scale.

    Raises:
        DataError: the image cannot be decoded; see `read_image`.
    """
    with open_image(source) as image:
        deep = has_16_bit_colours(image)  # first: reading the orientation makes Pillow decode PNGs
        width, height = image.size
        if orientation(image) >= 5:
            width, height = height, width
        image.draft(None, (max(_CHECKED_SIDE, image.width // 8), max(_CHECKED_SIDE, image.height // 8)))
        _apply_orientation(image)
        highest = highest_value(image) if has_16_bits(image) else None
        if deep:
            highest = highest_colour(image)
        gray = to_8bit(image, keep_gray=True).convert("L")
        thumbnail = gray.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
        return ImageFacts((width, height), np.asarray(thumbnail), highest)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Return the width and height of an image after its EXIF orientation, from the header.

    Raises:
        DataError: the file cannot be opened as an image; see `open_image`.
    """
    with open_image(source) as image:
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)


def _open(source: ImageSource, name: str) -> ImageFile.ImageFile:
    opened: io.BytesIO | str
    if isinstance(source, str | os.PathLike):
        size, opened = _file_size(os.fspath(source)), os.fspath(source)
    else:
        contents = source if isinstance(source, bytes) else source.read()
        size, opened = len(contents), io.BytesIO(contents)
    if size == 0:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        return Image.open(opened, formats=_known_formats())
    except ValueError as error:
        if "Decompressed data too large" not in str(error) and "Too much memory" not in str(error):
            raise
    # a PNG with a long text or colour profile: Pillow refuses these, and neither is used here
    contents = Path(opened).read_bytes() if isinstance(opened, str) else opened.getvalue()
    return Image.open(io.BytesIO(_without_metadata(contents)), formats=_known_formats())


def _without_metadata(png: bytes) -> bytes:
    """Return a PNG without its text and colour profile chunks."""
    kept, position = [png[:8]], 8
    while position + 12 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _check_size(image: ImageFile.ImageFile, name: str) -> None:
    width, height = image.size
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}; not decoded"
        )
    # Pillow stores 4 bytes per pixel of most modes; the result takes as much again
    per_pixel = 8 + _DECODER_BYTES.get(image.format or "", 0)
    if image.info.get("progressive"):
        per_pixel += _PROGRESSIVE_BYTES
    if pixels * per_pixel > MAX_DECODING_BYTES:
        raise DataError(
            f"{name}: {width} x {height} pixels of {image.format} would take about "
            f"{pixels * per_pixel / 2**30:.1f} GiB to decode; the limit is {MAX_DECODING_BYTES / 2**30:.0f} GiB"
        )


def _file_size(path: str) -> int:
    try:
        return require_regular_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not an image") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


UNKNOWN_FORMAT = "not an image, or of a format that is not supported"
"""Message about a file whose format is not recognised."""


def _unknown_format(source: ImageSource) -> str:
    """Return a message about a file that is not a readable image: its format, if recognised, and what to do."""
    start = b""
    with contextlib.suppress(OSError, DataError):
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                start = file.read(12)
        else:
            start = (source if isinstance(source, bytes) else source.read())[:12]
    if start[4:8] == b"ftyp" and start[8:12] not in (b"avif", b"avis"):
        if start[8:12] not in _HEIC_BRANDS:
            return "a video, not an image; detectors and segmenters take it under a name such as NAME.mp4"
        if "HEIF" not in _known_formats():
            return "a HEIC image; pip install 'iformer[heic]' reads it"
    return UNKNOWN_FORMAT


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the image has no readable EXIF orientation."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the EXIF block is damaged, the pixels are not
        return 1


def _apply_orientation(image: ImageFile.ImageFile) -> None:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # as above
        return


# Pillow keeps the upper 8 bits of 16-bit colours in PNG and TIFF files, and reads a TIFF of RGB and one
# unspecified channel as RGB. Both are settings of its decoder (`ImageFile.tile`), which can be changed before
# pixels are decoded.

_LITTLE, _BIG, _NATIVE = "16L", "16B", "16N"
_OTHER_ORDER = {_LITTLE: _BIG, _BIG: _LITTLE, _NATIVE: _BIG if sys.byteorder == "little" else _LITTLE}
_WIDE_MODES = tuple(f"{mode};{order}" for mode in ("RGB", "RGBA", "RGBX") for order in _OTHER_ORDER)


def has_16_bit_colours(image: ImageFile.ImageFile) -> bool:
    """Return whether an image that is not decoded yet is a PNG or TIFF with 16 bits per colour."""
    return (
        image.format in ("PNG", "TIFF")
        and bool(image.tile)
        and all(_raw(tile) in _WIDE_MODES for tile in image.tile)
    )


def take_low_bytes(image: ImageFile.ImageFile) -> None:
    """Make an image with `has_16_bit_colours` decode to the lower 8 bits of its values instead of the upper 8."""
    swapped = []
    for tile in image.tile:
        mode, order = _raw(tile).split(";")
        swapped.append(_with_raw(tile, f"{mode};{_OTHER_ORDER[order]}"))
    image.tile = swapped


def keep_extra_channel(image: ImageFile.ImageFile) -> None:
    """Make a TIFF of RGB and one unspecified channel decode to mode "RGBX" with that channel, instead of RGB."""
    if image.format != "TIFF" or image.mode != "RGB" or not image.tile:
        return
    if all(_raw(tile).split(";")[0] == "RGBX" for tile in image.tile):
        image._mode = "RGBX"


def stored_mode(image: ImageFile.ImageFile) -> str:
    """Return how an image that is not decoded yet stores its pixels, such as `L;4` for 4 bits of gray."""
    return _raw(image.tile[0]) if image.tile else ""


def _raw(tile: ImageFile._Tile) -> str:
    """Return the raw mode of a tile; its arguments are the raw mode alone, or a tuple that begins with it."""
    raw = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return raw if isinstance(raw, str) else ""


def _with_raw(tile: ImageFile._Tile, raw: str) -> ImageFile._Tile:
    return tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
