"""Segment images and videos: a class for each pixel, as pictures and index masks.

Shape letters: C channels, H and W an image's sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn

from iformer.config.segmenter import IGNORED
from iformer.device import resolve_device
from iformer.tasks.interface import PredictOptions, Record
from iformer.tasks.pictures import Colour, blend, draw_label, enlarged, label_font, save_png
from iformer.tasks.pyramid import PyramidPredictor, folded
from iformer.tasks.segmentation.dataset import evaluation_transform
from iformer.tasks.segmentation.inference import Subject, pixel_classifier
from iformer.tasks.tiles import Tiling, tiling, with_notes

VIDEOS = True
TAKES = frozenset({"sliding", "tile", "overlap", "max_frames"})
"""The options of `PredictOptions` that this task reads."""
MASKS = Path("masks")
"""Folder of the masks, relative to the output folder."""

_OPACITY = 0.55
_MAX_NAMES = 12

ClassMap = npt.NDArray[np.uint8]
"""Class index of each pixel of an image, uint8 H x W."""


class SegmentationPredictor(PyramidPredictor):
    """`TaskPredictor` of segmenters. An answer is a `ClassMap`."""

    def __init__(
        self,
        subject: Subject,
        *,
        device: torch.device | str = "cpu",
        sliding: bool = False,
        tiling: Tiling | None = None,
        require_finite: bool = False,
    ) -> None:
        """Prepare a segmenter.

        Args:
            subject: the segmenter.
            device: where a network runs.
            sliding: see `iformer.tasks.segmentation.inference.pixel_classifier`.
            tiling: how large images are cut into tiles. None: images are segmented as a whole.
            require_finite: outputs that are NaN or infinite are an error of their image.
        """
        self._tiling = tiling
        on = resolve_device(device)
        if isinstance(subject, nn.Module):
            subject.to(on).eval()
        self._segmenter = pixel_classifier(subject, device=on, sliding=sliding)
        self._segmenter.require_finite = require_finite
        names, count = self._segmenter.class_names, self._segmenter.num_classes
        super().__init__(
            self._segmenter.name, names, count, value_range=self._segmenter.preprocessing.value_range, device=on
        )
        self.colours = self._segmenter.colours
        """One colour for each class."""
        self._transform = evaluation_transform(self._segmenter.preprocessing)

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> ClassMap:
        if self._tiling is None:
            return self._classes(image)
        classes_HW: ClassMap = np.zeros((image.height, image.width), np.uint8)
        for tile in with_notes(self._tiling.tiles(image.width, image.height)):
            # two tiles share their overlap half and half: the tile whose edge is farther away labels a pixel
            inner = self._tiling.inner(tile, image.width, image.height)
            found_HW = self._classes(image.crop(tile))
            classes_HW[inner.top : inner.bottom, inner.left : inner.right] = found_HW[
                inner.top - tile.top : inner.bottom - tile.top, inner.left - tile.left : inner.right - tile.left
            ]
        return classes_HW

    def _classes(self, image: Image.Image) -> ClassMap:
        classes_HW = self._segmenter.classes(self._transform(image), (image.height, image.width))
        classes: ClassMap = classes_HW.to(torch.uint8).cpu().numpy()
        return classes

    def draw(self, image: Image.Image, answer: ClassMap, scale: int = 1) -> Image.Image:
        return draw_classes(image, answer, self.class_names, self.colours, scale)

    def record(self, answer: ClassMap) -> Record:
        counts = np.bincount(answer.ravel())
        order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
        return {
            "classes": [
                {"name": self.class_names[k], "share": round(int(counts[k]) / answer.size, 4)} for k in order
            ]
        }

    def masks(self) -> Callable[[], ClassMap]:
        """Return a function that returns the latest record's class of each pixel, uint8 H x W."""
        return partial(_same, self.latest)

    def words(self, record: Record) -> str:
        return "   ".join(f"{item['name']} {100 * item['share']:.1f} %" for item in record["classes"][:8])

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths of drawn images, drawn videos and masks, relative to the output folder."""
        drawn = super().files(paths)
        return drawn + [MASKS / name for name in drawn if name.suffix == ".png"]

    def write(self, path: Path, image: Image.Image, answer: ClassMap, out: Path | None, name: str) -> Record:
        """Write `masks/NAME.png` (class indices with the network's palette) and return the path as `mask`."""
        if out is None:
            return {}
        (out / MASKS).mkdir(exist_ok=True)
        mask = index_png(answer, self.colours)
        return {"mask": str(save_png(mask, out / MASKS / f"{name}.png"))}


def _same(classes: ClassMap) -> ClassMap:
    return classes


def open_predictor(subject: Subject, options: PredictOptions) -> SegmentationPredictor:
    """Build the predictor of the verb `predict`; see `iformer.tasks.interface.PredictModule`."""
    predictor = SegmentationPredictor(
        folded(subject),
        device=options.device,
        sliding=bool(options.sliding),
        tiling=tiling(options.tile, options.overlap),
        require_finite=True,
    )
    predictor.max_frames = options.max_frames
    return predictor


def draw_classes(
    image: Image.Image,
    classes_HW: ClassMap,
    class_names: Sequence[str],
    colours: Sequence[Colour],
    scale: int = 1,
) -> Image.Image:
    """Draw each pixel's class as a colour, and the names of the largest classes, on a copy of an RGB image.

    A class called background gets no colour and no name.
    """
    known_HW = classes_HW != IGNORED
    for background in [k for k, name in enumerate(class_names) if name.lower() == "background"]:
        known_HW &= classes_HW != background
    overlay_HWC = np.array(image)
    overlay_HWC[known_HW] = np.array(colours, np.uint8)[classes_HW[known_HW]]
    drawn = enlarged(blend(image, overlay_HWC, _OPACITY), scale)
    draw = ImageDraw.Draw(drawn)
    font = label_font(drawn.size)
    counts = np.bincount(classes_HW[known_HW], minlength=len(class_names))
    named = [k for k in np.argsort(-counts, kind="stable")[:_MAX_NAMES] if counts[k]]
    for row, k in enumerate(named):
        corner = (4, 4 + row * (font.size + 8) + font.size + 4)
        draw_label(draw, class_names[k], corner, tuple(colours[k]), font, drawn.size)
    return drawn


def index_png(classes_HW: ClassMap, colours: Sequence[Colour]) -> Image.Image:
    """Return class indices as a palette image, so that any viewer shows the colours."""
    image = Image.fromarray(classes_HW, mode="L")
    palette = [value for colour in colours for value in colour]
    image.putpalette(palette + [0] * (768 - len(palette)))
    return image
