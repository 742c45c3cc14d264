"""Segment images and videos: a class for each pixel, as pictures and index masks.

Shape letters: B batch, C channels, K classes, H and W an image's sides, h and w the resized image's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.config.network import MIN_INPUT_SIZE
from iformer.config.segmenter import IGNORED
from iformer.data.transforms import Normalize
from iformer.models.segmenter import Segmenter
from iformer.tasks.interface import PredictOptions, Record
from iformer.tasks.pictures import Colour, blend, draw_label, label_font, save_png
from iformer.tasks.pyramid import PyramidPredictor
from iformer.tasks.segmentation.dataset import fitted

VIDEOS = True
TAKES = frozenset({"sliding"})
"""The options of `PredictOptions` that this task reads."""

_OPACITY = 0.55
_MAX_NAMES = 12

ClassMap = npt.NDArray[np.uint8]
"""H x W class indices."""


class SegmentationPredictor(PyramidPredictor):
    """A segmenter ready to answer. An answer is a `ClassMap`."""

    def __init__(self, network: Segmenter, *, device: torch.device | str = "cpu", sliding: bool = False) -> None:
        """Prepare a network; `sliding` uses overlapping windows of its size instead of whole images."""
        super().__init__(network, device=device)
        self.network = network
        self._window = network.config.size if sliding else None
        self._normalize = Normalize(network.config.preprocessing).to(self.device)

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> ClassMap:
        config = self.network.config
        resized = image.resize(fitted(image.size, config.size, config.max_size), Image.Resampling.BILINEAR)
        normalized = self._normalize(pil_to_tensor(resized)[None].to(self.device))
        classes_HW = segment(self.network, normalized, (image.height, image.width), window=self._window)
        classes: ClassMap = classes_HW.to(torch.uint8).cpu().numpy()
        return classes

    def draw(self, image: Image.Image, answer: ClassMap) -> Image.Image:
        return draw_classes(image, answer, self.class_names, self.network.config.colours)

    def record(self, answer: ClassMap) -> Record:
        counts = np.bincount(answer.ravel())
        order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
        return {
            "classes": [
                {"name": self.class_names[k], "share": round(int(counts[k]) / answer.size, 4)} for k in order
            ]
        }

    def words(self, record: Record) -> str:
        return "   ".join(f"{item['name']} {100 * item['share']:.1f} %" for item in record["classes"][:8])

    def write(self, path: Path, image: Image.Image, answer: ClassMap, out: Path | None, name: str) -> Record:
        """Write `masks/NAME.png`: class indices with the network's palette."""
        if out is None:
            return {}
        (out / "masks").mkdir(exist_ok=True)
        mask = index_png(answer, self.network.config.colours)
        return {"mask": str(save_png(mask, out / "masks" / f"{name}.png"))}


def open_predictor(network: Segmenter, options: PredictOptions) -> SegmentationPredictor:
    """Build the predictor of the verb `predict`."""
    return SegmentationPredictor(network, device=options.device, sliding=bool(options.sliding))


def segment(model: nn.Module, image: Tensor, size: tuple[int, ...], *, window: int | None = None) -> Tensor:
    """Return the classes of one normalised image (1 x 3 x h x w) at another size (H, W): int64 H x W.

    Args:
        model: images to logits, B x K x H x W.
        window: side of the windows of `sliding_logits`; None: the whole image at once.
    """
    height, width = image.shape[2:]
    # the backbone needs a minimum of pixels, which a thin image has not
    padded = F.pad(image, (0, max(0, MIN_INPUT_SIZE - width), 0, max(0, MIN_INPUT_SIZE - height)))
    logits = model(padded) if window is None else sliding_logits(model, padded, window=window)
    logits = logits[:, :, :height, :width].float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[0].argmax(0)


def sliding_logits(
    network: Callable[[Tensor], Tensor], images: Tensor, *, window: int, overlap: float = 1 / 3
) -> Tensor:
    """Compute the logits of large images in overlapping windows, and average them where windows overlap.

    Args:
        network: B x 3 x h x w to logits B x K x h x w.
        images: B x 3 x H x W, normalised.
        window: side of the windows, in pixels; a shorter side of the image is used whole.
        overlap: smallest share of a window that it has in common with the next one.

    Returns:
        B x K x H x W.
    """
    height, width = images.shape[2:]
    step = max(1, round(window * (1 - overlap)))
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for top in _starts(height, window, step):
        for left in _starts(width, window, step):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = network(images[:, :, rows, columns])
            if total is None:
                total = logits.new_zeros((len(images), logits.shape[1], height, width))
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count


def _starts(length: int, window: int, step: int) -> list[int]:
    """Return where windows begin so that they cover a side; the last one ends at its end."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def draw_classes(
    image: Image.Image, classes_HW: ClassMap, class_names: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """Draw the colours of the pixels' classes, and the names of the largest ones, on a copy of an RGB image."""
    known_HW = classes_HW != IGNORED
    overlay_HWC = np.array(image)
    overlay_HWC[known_HW] = np.array(colours, np.uint8)[classes_HW[known_HW]]
    drawn = blend(image, overlay_HWC, _OPACITY)
    draw = ImageDraw.Draw(drawn)
    font = label_font(image.size)
    counts = np.bincount(classes_HW[known_HW], minlength=len(class_names))
    named = [k for k in np.argsort(-counts, kind="stable")[:_MAX_NAMES] if counts[k]]
    for row, k in enumerate(named):
        corner = (4, 4 + row * (font.size + 8) + font.size + 4)
        draw_label(draw, class_names[k], corner, tuple(colours[k]), font, image.size)
    return drawn


def index_png(classes_HW: ClassMap, colours: Sequence[Colour]) -> Image.Image:
    """Return class indices as a palette image, so that any viewer shows the colours."""
    image = Image.fromarray(classes_HW, mode="L")
    palette = [value for colour in colours for value in colour]
    image.putpalette(palette + [0] * (768 - len(palette)))
    return image
