"""Pictures for people: overlays, labels and contact sheets, drawn with Pillow."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from iformer.errors import printable
from iformer.files import replacing

Colour = tuple[int, int, int]

THUMBNAIL = 220
"""Default side, in pixels, of a picture on a contact sheet."""

_GAP, _MARGIN, _PADDING = 18, 36, 10
_HEADER, _HEADING = 84, 900
"""Height of the heading, and the largest width to which a long heading widens a narrow sheet, in pixels."""
_CAPTION = 30
_BAR_ROW, _BAR = 30, 6
"""Height of a label with the bar below it, and height of the bar alone, in pixels."""

_MARK = 26
"""Side, in pixels, of the square behind a tick or a cross."""

RIGHT, WRONG = "#0072b2", "#d55e00"
"""Colours of right (blue) and wrong (vermilion) answers, which colour-blind people can tell apart."""
_PAPER, _CARD, _EDGE = "#f4f5f7", "#ffffff", "#dde1e6"
_INK, _FAINT, _TRACK = "#1c2430", "#6b7684", "#eef1f4"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar with a label on a card."""

    label: str
    share: float
    """Filled share of the bar, 0 to 1."""
    colour: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A strip of colours with a label at each end."""

    colours: Callable[[tuple[int, int]], Image.Image]
    """Function that draws the strip, from its width and height in pixels."""
    low: str
    high: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of a contact sheet with its caption and bars."""

    picture: Image.Image
    """The picture. All pictures of a sheet must have the same size."""
    caption: str
    bars: tuple[Bar, ...] = ()
    scale: Scale | None = None
    """A scale next to the caption, under the right half of the picture. None: no scale."""
    is_right: bool | None = None
    """Whether the answer is right, marked by a tick or a cross in the corner of the card. None: no mark."""


def draw_sheet(cards: Sequence[Card], *, columns: int, title: str, subtitle: str) -> Image.Image:
    """Draw a contact sheet of at least one card, row by row."""
    columns = min(columns, len(cards))
    rows = math.ceil(len(cards) / columns)
    bars = max(len(card.bars) for card in cards)
    picture = cards[0].picture
    card_width = picture.width + 2 * _PADDING
    card_height = _PADDING + picture.height + _CAPTION + bars * _BAR_ROW + 8
    written = "".join(
        [title, subtitle, *(text for card in cards for text in (card.caption, *(bar.label for bar in card.bars)))]
    )
    fonts = {name: _font(size, written) for name, size in {"title": 24, "text": 14, "small": 12}.items()}
    inner = columns * (card_width + _GAP) - _GAP
    title = _shortened(title, fonts["title"], max(inner, _HEADING))
    subtitle = _shortened(subtitle, fonts["text"], max(inner, _HEADING))
    inner = max(inner, math.ceil(max(fonts["title"].getlength(title), fonts["text"].getlength(subtitle))))
    width = inner + 2 * _MARGIN
    height = _HEADER + rows * (card_height + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), title, font=fonts["title"], fill=_INK)
    draw.text((_MARGIN, 52), subtitle, font=fonts["text"], fill=_FAINT)
    for index, card in enumerate(cards):
        left = _MARGIN + index % columns * (card_width + _GAP)
        top = _HEADER + index // columns * (card_height + _GAP)
        draw.rounded_rectangle(
            (left, top, left + card_width - 1, top + card_height - 1), radius=8, fill=_CARD, outline=_EDGE
        )
        sheet.paste(card.picture, (left + _PADDING, top + _PADDING))
        _draw_card_text(draw, card, left + _PADDING, top + _PADDING + picture.height, fonts)
        if card.scale is not None:
            place = (left + _PADDING + (picture.width + _GAP) // 2, left + _PADDING + picture.width)
            _draw_scale(sheet, card.scale, (*place, top + _PADDING + picture.height + 9), fonts["small"])
        if card.is_right is not None:
            _draw_mark(draw, (left + _PADDING + picture.width - _MARK, top + _PADDING), is_right=card.is_right)
    return sheet


def square(picture: Image.Image, side: int = THUMBNAIL) -> Image.Image:
    """Return a square of `side` pixels with the whole picture, resized to fit, in the middle of the square."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resized = picture.resize(size, Image.Resampling.LANCZOS)
    result = Image.new("RGB", (side, side), _TRACK)
    result.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return result


def enlarged(picture: Image.Image, scale: int) -> Image.Image:
    """Return a copy of a picture whose sides are `scale` times as long, without smoothing."""
    size = (scale * picture.width, scale * picture.height)
    return picture.resize(size, Image.Resampling.NEAREST)


def beside(left: Image.Image, right: Image.Image, side: int = THUMBNAIL) -> Image.Image:
    """Return two whole pictures side by side, each in the middle of a square of `side` pixels."""
    pair = Image.new("RGB", (2 * side + _GAP, side), "white")
    pair.paste(square(left, side), (0, 0))
    pair.paste(square(right, side), (side + _GAP, 0))
    return pair


def save_png(picture: Image.Image, path: Path) -> Path:
    """Write a picture as a PNG file, which replaces an older file in one step, and return the path.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as file:
        picture.save(file, format="PNG")
    return path


def blend(image: Image.Image, overlay_HWC: npt.NDArray[np.uint8], opacity: float) -> Image.Image:
    """Return an RGB image mixed with an overlay of the same size, which has the weight `opacity` (0 to 1)."""
    return Image.blend(image, Image.fromarray(overlay_HWC), opacity)


def label_font(image_size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """Return a font whose size suits labels on an image of `image_size`, width and height in pixels."""
    return _font(min(200, max(10, round(max(image_size) / 45))))


def draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    image_size: tuple[int, int],
) -> None:
    """Draw text on a coloured plate; `corner` is the plate's lower left corner, moved to keep it in the image."""
    text = printable(text)
    font = font if text.isascii() else _font(round(font.size), text)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, corner[0]), max(0, image_size[0] - width))
    y = min(max(0, corner[1] - height), max(0, image_size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill="white" if dark else "black")


def _draw_mark(draw: ImageDraw.ImageDraw, corner: tuple[int, int], *, is_right: bool) -> None:
    """Draw a tick or a cross on a square plate whose upper left corner is at `corner`."""
    x, y = corner
    draw.rectangle((x, y, x + _MARK - 1, y + _MARK - 1), fill=RIGHT if is_right else WRONG)
    strokes = [((6, 14), (11, 19), (20, 7))] if is_right else [((7, 7), (19, 19)), ((7, 19), (19, 7))]
    for stroke in strokes:
        draw.line([(x + across, y + down) for across, down in stroke], fill="white", width=4, joint="curve")


def _draw_card_text(
    draw: ImageDraw.ImageDraw, card: Card, left: int, top: int, fonts: dict[str, ImageFont.FreeTypeFont]
) -> None:
    width = card.picture.width
    room = width if card.scale is None else width // 2 - _GAP
    draw.text((left, top + 9), _shortened(card.caption, fonts["small"], room), font=fonts["small"], fill=_FAINT)
    for row, bar in enumerate(card.bars):
        y = top + _CAPTION + row * _BAR_ROW
        percent = f"{100 * bar.share:.1f} %"
        percent_width = fonts["text"].getlength(percent)
        label = _shortened(bar.label, fonts["text"], width - percent_width - 12)
        draw.text((left, y), label, font=fonts["text"], fill=_INK)
        draw.text((left + width - percent_width, y), percent, font=fonts["text"], fill=_INK)
        under = y + _BAR_ROW - _BAR - 5  # no bar runs behind letters
        draw.rectangle((left, under, left + width - 1, under + _BAR - 1), fill=_TRACK)
        filled = round(bar.share * width) if math.isfinite(bar.share) else 0
        if filled:
            draw.rectangle((left, under, left + filled - 1, under + _BAR - 1), fill=bar.colour)


def _draw_scale(
    sheet: Image.Image, scale: Scale, place: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Draw a scale on one line; `place` is the left end, the right end and the top of the scale, in pixels."""
    left, right, top = place
    draw = ImageDraw.Draw(sheet)
    after_low = left + math.ceil(font.getlength(scale.low)) + 6
    before_high = right - math.ceil(font.getlength(scale.high)) - 6
    draw.text((left, top), scale.low, font=font, fill=_FAINT)
    draw.text((before_high + 6, top), scale.high, font=font, fill=_FAINT)
    strip = scale.colours((max(1, before_high - after_low), 12))
    sheet.paste(strip, (after_low, top + 2))


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font for `text`: Pillow's for ASCII, else matplotlib's, if installed, for European scripts."""
    if not text.isascii() and (found := importlib.util.find_spec("matplotlib")) and found.origin:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), round(0.9 * size))  # letters of this font are larger
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a printable text, cut in the middle to `width` pixels, because names differ at both ends."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        candidate = text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :].lstrip()
        if font.getlength(candidate) <= width:
            return candidate
    return "…"
