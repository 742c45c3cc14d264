"""What a detector or segmenter says of an image, drawn on the image. With Pillow alone.

Shape letters: N detections, H and W the image's sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iformer.config.dense import IGNORED, default_palette

_MASK_OPACITY = 0.45
_CLASSES_OPACITY = 0.55
_MOST_NAMES = 12

Colour = tuple[int, int, int]


def draw_detections(
    image: Image.Image, found: Mapping[str, Tensor], class_names: Sequence[str], *, min_score: float = 0.5
) -> Image.Image:
    """A copy of an RGB image with boxes, masks where there are any, and names with scores.

    Args:
        found: what `iformer.models.detector.Detector` gives for the image, in its pixels.
        min_score: detections of a lower score are left out.
    """
    colours = default_palette(len(class_names))
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    shown = [index for index, score in enumerate(scores) if score >= min_score]
    pixels_HWC = np.asarray(image, dtype=np.float32).copy()
    if "masks" in found:
        for index in reversed(shown):  # the surest on top
            inside_HW = (found["masks"][index, 0] > 0.5).cpu().numpy()
            tint = np.array(colours[labels[index]], np.float32)
            pixels_HWC[inside_HW] = (1 - _MASK_OPACITY) * pixels_HWC[inside_HW] + _MASK_OPACITY * tint
    drawn = Image.fromarray(pixels_HWC.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    side = max(image.size)
    font = ImageFont.load_default(max(10, round(side / 45)))
    width = max(1, round(side / 300))
    for index in reversed(shown):
        box = [round(value, 1) for value in found["boxes"][index].tolist()]
        colour = colours[labels[index]]
        draw.rectangle(box, outline=colour, width=width)
        text = f"{class_names[labels[index]]} {100 * scores[index]:.0f} %"
        _label(draw, text, (box[0], box[1]), colour, font, image.size)
    return drawn


def draw_classes(
    image: Image.Image,
    classes_HW: npt.NDArray[np.uint8],
    class_names: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """A copy of an RGB image under the colours of its pixels' classes, with the names of the largest ones."""
    table = np.array([*colours], np.float32)
    pixels_HWC = np.asarray(image, dtype=np.float32)
    known_HW = classes_HW != IGNORED
    overlay_HWC = table[np.where(known_HW, classes_HW, 0)]
    opacity_HW1 = (_CLASSES_OPACITY * known_HW)[..., None]
    drawn = Image.fromarray(((1 - opacity_HW1) * pixels_HWC + opacity_HW1 * overlay_HWC).round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    size = max(10, round(max(image.size) / 45))
    font = ImageFont.load_default(size)
    counts = np.bincount(classes_HW[known_HW], minlength=len(class_names))
    named = [k for k in np.argsort(-counts, kind="stable")[:_MOST_NAMES] if counts[k]]
    for row, k in enumerate(named):
        _label(draw, class_names[k], (4, 4 + row * (size + 8) + size + 4), tuple(colours[k]), font, image.size)
    return drawn


def index_png(classes_HW: npt.NDArray[np.uint8], colours: Sequence[Colour]) -> Image.Image:
    """Classes as a PNG of indices that carries its palette, so that any viewer shows the colours."""
    image = Image.fromarray(classes_HW, mode="L")
    palette = [value for colour in colours for value in colour]
    image.putpalette(palette + [0] * (768 - len(palette)))
    return image


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Text on a plate of a colour, whose lower left corner is `corner` where the image has room for it."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, corner[0]), max(0, size[0] - width))
    y = min(max(0, corner[1] - height), max(0, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill="white" if dark else "black")
