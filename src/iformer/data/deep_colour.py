"""Parts of PNG and TIFF files that Pillow drops: the low bytes of 16-bit colours, and a fourth TIFF channel.

Pillow keeps the upper 8 bits of 16-bit colours, and reads a TIFF of RGB and one unspecified channel as RGB. Both
are settings of its decoder (`ImageFile.tile`), which can be changed before pixels are decoded.
"""

from __future__ import annotations

import sys

from PIL import ImageFile

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
    """Make an image with `has_16_bit_colours` decode to the lower 8 bits of its values, not to the upper ones."""
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


def _raw(tile: ImageFile._Tile) -> str:
    """Return the raw mode of a tile; its arguments are the raw mode alone, or a tuple that begins with it."""
    raw = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return raw if isinstance(raw, str) else ""


def _with_raw(tile: ImageFile._Tile, raw: str) -> ImageFile._Tile:
    return tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
