"""Answers as pictures: a contact sheet, and overlays of where the network looks. Drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iformer.files import replacing
from iformer.tasks.classification.predict import Answer

MAX_PAGES = 5
"""Pages of one kind that are drawn; the answers beyond them are in the JSON lines only."""

_THUMBNAIL = 220
_GAP = 18
_MARGIN = 36
_HEADER = 84
_BAR_ROW = 25
_BARS = 3
_CAPTION = 30
_COLUMNS, _ROWS = 6, 6

_PAPER, _CARD, _EDGE = "#f4f5f7", "#ffffff", "#dde1e6"
_INK, _FAINT = "#1c2430", "#6b7684"
_FIRST, _OTHER, _TRACK = "#56b4e9", "#c3dcec", "#eef1f4"  # Okabe and Ito's sky blue: safe for the colour-blind
# Anchors of matplotlib's "inferno", which grows evenly in lightness.
_HEAT = np.array(
    [[0, 0, 4], [51, 10, 95], [120, 28, 109], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]],
    dtype=np.float32,
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of a sheet with its caption and bars."""

    picture: Image.Image
    caption: str
    classes: tuple[tuple[str, float], ...]


def draw_predictions(answers: Sequence[Answer], folder: Path, *, title: str, subtitle: str) -> list[Path]:
    """Write `predict.png` (then `predict-2.png` …): each image as the network saw it, with its first classes.

    At most `MAX_PAGES` pages; returns the files written.
    """
    cards = [
        Card(picture=_square(_photograph(answer.pixels)), caption=answer.path.name, classes=answer.classes)
        for answer in answers[: max_drawn()]
    ]
    return _draw_pages(cards, folder, "predict", columns=_COLUMNS, title=title, subtitle=subtitle)


def draw_explanations(answers: Sequence[Answer], folder: Path, *, title: str) -> list[Path]:
    """Write `explain.png` (then `explain-2.png` …): each image beside the overlay of where attention looks.

    See `overlay`; the caption tells how many times an even share the most attended place receives.
    """
    columns = _COLUMNS // 2
    cards = []
    for answer in answers[: max_drawn(explain=True)]:
        assert answer.attention is not None
        photograph = _photograph(answer.pixels)
        pair = Image.new("RGB", (2 * _THUMBNAIL + _GAP, _THUMBNAIL), _CARD)
        pair.paste(_square(photograph), (0, 0))
        pair.paste(_square(overlay(photograph, answer.attention)), (_THUMBNAIL + _GAP, 0))
        peak = float(answer.attention.max())
        caption = f"{answer.path.name}   |   most attended: {peak:.1f} x an even share"
        cards.append(Card(picture=pair, caption=caption, classes=answer.classes))
    subtitle = (
        "Right: attention received in the last attention stage, mean over queries and blocks; "
        "dark is an even share or less."
    )
    return _draw_pages(cards, folder, "explain", columns=columns, title=title, subtitle=subtitle)


def overlay(photograph: Image.Image, attention_hw: Tensor) -> Image.Image:
    """A photograph in gray under a heat map of the attention that each place receives.

    Dark: an even share or less. Brightest: the most attended place, where that is twice an even share or more.
    """
    received = attention_hw.numpy().astype(np.float32)
    # places below an even share stay dark, and an almost even map is not stretched into a picture of something
    heat = (received - 1) / max(float(received.max()) - 1, 1.0)
    smooth = Image.fromarray(heat).resize(photograph.size, Image.Resampling.BICUBIC)
    value = np.asarray(smooth, dtype=np.float32).clip(0, 1)
    position = value * (len(_HEAT) - 1)
    low = np.minimum(position.astype(np.int64), len(_HEAT) - 2)
    colour = _HEAT[low] + (_HEAT[low + 1] - _HEAT[low]) * (position - low)[..., None]
    gray = np.asarray(photograph.convert("L"), dtype=np.float32)[..., None]
    opacity = (0.25 + 0.5 * value)[..., None]
    return Image.fromarray((gray * (1 - opacity) + colour * opacity).clip(0, 255).astype(np.uint8))


def max_drawn(*, explain: bool = False) -> int:
    """How many answers `draw_predictions`, or with `explain` `draw_explanations`, draws at most."""
    return MAX_PAGES * _ROWS * (_COLUMNS // 2 if explain else _COLUMNS)


def _draw_pages(
    cards: Sequence[Card], folder: Path, stem: str, *, columns: int, title: str, subtitle: str
) -> list[Path]:
    per_page = columns * _ROWS
    pages = [cards[start : start + per_page] for start in range(0, len(cards), per_page)]
    written = []
    for number, page in enumerate(pages, start=1):
        name = f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
        heading = title if len(pages) == 1 else f"{title}, page {number} of {len(pages)}"
        written.append(save_png(_draw_page(page, columns, heading, subtitle), folder / name))
    return written


def save_png(picture: Image.Image, path: Path) -> Path:
    """Write a picture; returns the path."""
    with replacing(path) as file:
        picture.save(file, format="PNG")
    return path


def _draw_page(cards: Sequence[Card], columns: int, title: str, subtitle: str) -> Image.Image:
    columns = min(columns, len(cards))
    rows = math.ceil(len(cards) / columns)
    bars = max(min(_BARS, len(card.classes)) for card in cards)
    card_width = cards[0].picture.width + 2 * 10
    card_height = 10 + _THUMBNAIL + _CAPTION + bars * _BAR_ROW + 8
    fonts = _fonts()
    heading_width = max(fonts["title"].getlength(title), fonts["text"].getlength(subtitle))
    width = max(columns * (card_width + _GAP) - _GAP, math.ceil(heading_width)) + 2 * _MARGIN
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
        sheet.paste(card.picture, (left + 10, top + 10))
        _draw_card_text(draw, card, left + 10, top + 10 + _THUMBNAIL, card.picture.width, fonts)
    return sheet


def _draw_card_text(
    draw: ImageDraw.ImageDraw,
    card: Card,
    left: int,
    top: int,
    width: int,
    fonts: dict[str, ImageFont.FreeTypeFont],
) -> None:
    draw.text((left, top + 9), _shortened(card.caption, fonts["small"], width), font=fonts["small"], fill=_FAINT)
    for row, (name, probability) in enumerate(card.classes[:_BARS]):
        y = top + _CAPTION + row * _BAR_ROW
        box = (left, y, left + width - 1, y + _BAR_ROW - 5)
        draw.rounded_rectangle(box, radius=3, fill=_TRACK)
        filled = round(probability * (width - 1))
        if filled >= 2:
            draw.rounded_rectangle(
                (left, y, left + filled, y + _BAR_ROW - 5),
                radius=min(3, filled // 2),
                fill=_FIRST if row == 0 else _OTHER,
            )
        percent = f"{100 * probability:.1f} %"
        percent_width = fonts["text"].getlength(percent)
        label = _shortened(name, fonts["text"], width - percent_width - 18)
        draw.text((left + 6, y + 2), label, font=fonts["text"], fill=_INK)
        draw.text((left + width - 6 - percent_width, y + 2), percent, font=fonts["text"], fill=_INK)


def _fonts() -> dict[str, ImageFont.FreeTypeFont]:
    sizes = {"title": 24, "text": 14, "small": 12}
    return {name: ImageFont.load_default(size) for name, size in sizes.items()}  # type: ignore[misc]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut in its middle where it is too wide: names differ at both ends."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        candidate = text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :].lstrip()
        if font.getlength(candidate) <= width:
            return candidate
    return "…"


def _photograph(pixels_CHW: Tensor) -> Image.Image:
    array = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array.repeat(3, axis=2))


def _square(picture: Image.Image) -> Image.Image:
    """The whole picture on a square of the thumbnail's size."""
    scale = _THUMBNAIL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resized = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), _TRACK)
    square.paste(resized, ((_THUMBNAIL - size[0]) // 2, (_THUMBNAIL - size[1]) // 2))
    return square
