"""Conversion of decoded images of any mode to 8 bits per channel, in strips to bound the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

ValueRange = tuple[float, float]
"""Pixel values that become black (0) and white (255)."""

CARRIERS = {1: "L", 2: "La", 3: "RGB", 4: "RGBX"}
"""Pillow's mode for each number of channels. `La` and `RGBX` stand in for LA and RGBA, in which resizing would
multiply colours by transparency."""

_STRIP_PIXELS = 2**22

Box = tuple[int, int, int, int]


def is_wide(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits, as integers or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def has_16_bits(image: Image.Image) -> bool:
    """Return whether an image has one channel of 16-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def highest_colour(image: Image.Image) -> int:
    """Return an upper bound of the values of a 16-bit colour image, from the upper 8 bits that Pillow decodes."""
    highest = max(high for _, high in image.getextrema()[:3])  # type: ignore[misc]
    return 256 * int(highest) + 255


def highest_value(image: Image.Image) -> int:
    """Return the highest value of an image with one channel of integers."""
    return max(int(np.asarray(strip).max()) for _, strip in _strips(image))


def to_8bit(image: Image.Image, *, keep_gray: bool, value_range: ValueRange | None = None) -> Image.Image:
    """Convert a decoded image to a plain `Image` in mode "RGB", or "L" if it is gray and `keep_gray` is set.

    Args:
        image: an image of any mode that has an RGB conversion.
        keep_gray: return gray images in mode "L".
        value_range: values of black and white for images of more than 8 bits; None applies the rules of
            `iformer.data.images.read_image`.
    """
    if is_wide(image):
        image = _scaled(image, value_range)
    elif image.has_transparency_data:
        image = _on_white(image)
    elif image.mode == "1":
        image = image.convert("L")
    target = "L" if keep_gray and image.mode == "L" else "RGB"
    if image.mode != target:
        return image.convert(target)
    # a file's own image class keeps the file and its metadata alive
    return image if type(image) is Image.Image else image.copy()


def with_extra_channel(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of 2 or 4 channels (gray or RGB, and one more) as a plain `Image` in the mode of `CARRIERS`.

    The values are those in the file: nothing is composited.
    """
    stored = {2: "LA", 4: "RGBA"}[channels]
    if image.mode not in (stored, CARRIERS[channels]):
        image = image.convert(stored)  # a palette with transparency
    return Image.frombytes(CARRIERS[channels], image.size, image.tobytes())


def scaled_colours(
    high: Image.Image, low: Image.Image, value_range: ValueRange, *, all_channels: bool
) -> Image.Image:
    """Convert a 16-bit colour image to 8 bits per channel.

    Args:
        high: the upper 8 bits of each value.
        low: the lower 8 bits.
        value_range: values of black and white.
        all_channels: apply the range to the fourth channel too. False: that channel is transparency and keeps its
            upper 8 bits.

    Returns:
        An image in the mode of `high`.
    """
    table = np.rint(_stretch(*value_range)(np.arange(2**16, dtype=np.float64)).clip(0, 255)).astype(np.uint8)
    result = Image.new(high.mode, high.size)
    for box, strip in _strips(high):
        high_HWC, low_HWC = np.asarray(strip), np.asarray(low.crop(box))
        pixels_HWC = table[high_HWC.astype(np.uint16) << 8 | low_HWC]
        if not all_channels:
            pixels_HWC[..., 3:] = high_HWC[..., 3:]
        result.paste(Image.frombytes(high.mode, strip.size, pixels_HWC.tobytes()), box)
    return result


def _strips(image: Image.Image) -> Iterator[tuple[Box, Image.Image]]:
    """Yield horizontal strips of the image and their boxes."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield (0, 0, *image.size), image
        return
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, image.crop(box)


def _on_white(image: Image.Image) -> Image.Image:
    gray = image.mode in ("LA", "La", "L", "1")
    result = Image.new("L" if gray else "RGB", image.size)
    for box, strip in _strips(image):
        rgba = strip.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
        result.paste(flat.getchannel("R") if gray else flat.convert("RGB"), box)
    return result


def _scaled(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Convert 16-bit, 32-bit or float values to 8 bits."""
    convert = _conversion(image, value_range)
    result = Image.new("L", image.size)
    for box, strip in _strips(image):
        result.paste(Image.fromarray(convert(np.asarray(strip))), box)
    return result


def _conversion(image: Image.Image, value_range: ValueRange | None) -> Callable[[np.ndarray], np.ndarray]:
    if value_range is None and has_16_bits(image):
        return lambda values_HW: (values_HW.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    low, high = value_range or _finite_range(image)
    if value_range is not None:
        scale: Callable[[np.ndarray], np.ndarray] = _stretch(low, high)
    elif low > high:  # no finite value
        return lambda values_HW: np.zeros(values_HW.shape, np.uint8)
    elif image.mode == "F" and low >= 0 and high <= 1:
        scale = _stretch(0.0, 1.0)
    elif low >= 0 and high <= 255:
        scale = _stretch(0.0, 255.0)
    elif image.mode == "I" and low >= 0 and high <= 65535:
        scale = lambda values_HW: np.floor(values_HW / 256)  # noqa: E731
    else:
        scale = _stretch(low, high)

    def convert(values_HW: np.ndarray) -> np.ndarray:
        values_HW = values_HW.astype(np.float64)
        values_HW = np.where(np.isfinite(values_HW), values_HW, low)
        pixels_HW: np.ndarray = np.rint(scale(values_HW).clip(0, 255)).astype(np.uint8)
        return pixels_HW

    return convert


def _stretch(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    factor = 255 / (high - low) if high > low else 0.0
    return lambda values_HW: (values_HW - low) * factor


def _finite_range(image: Image.Image) -> ValueRange:
    low, high = math.inf, -math.inf
    for _, strip in _strips(image):
        values_HW = np.asarray(strip)
        finite = values_HW[np.isfinite(values_HW)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high
