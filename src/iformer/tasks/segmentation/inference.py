"""Find the class of each pixel with a Semantic FPN, a light segmenter or an artifact of either.

A Semantic FPN sees whole images of any size. Light segmenters and artifacts see letterboxed images of one size.

Shape letters: B batch, K classes, H and W the sides of an image, h and w the sides of the network's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.checking import Config, check
from iformer.config.network import MIN_INPUT_SIZE
from iformer.config.preprocessing import Preprocessing
from iformer.config.segmenter import Palette
from iformer.data.transforms import Normalize
from iformer.deploy.artifact import ArtifactInfo
from iformer.deploy.exportable import Forward, Outputs
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import ConfigError, UserError
from iformer.models.finite import check_finite, finite_outputs
from iformer.models.letterbox import content_size
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.tiles import starts

Colours = tuple[tuple[int, int, int], ...]


LOGITS = "logits"
"""Name of the output of artifacts: B x K x h/s x w/s, with a stride s."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDisplay(Config):
    """The field `postprocess` of a segmenter artifact's record: the colours of the classes."""

    palette: Palette
    """A colour (red, green, blue) for each class."""


class PixelClassifier(ABC):
    """Base class: a segmenter that finds the class of each pixel of an image."""

    require_finite = False
    """Whether `classes` checks that the network's outputs are finite."""

    def __init__(
        self, name: str, class_names: tuple[str, ...], colours: Colours, preprocessing: Preprocessing
    ) -> None:
        """Set the properties; `class_names` is empty if unknown, `colours` has one colour for each class."""
        self.name, self.class_names, self.colours, self.preprocessing = name, class_names, colours, preprocessing

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.colours)

    @abstractmethod
    def classes(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return the class of each pixel, int64 H x W.

        Args:
            pixels: one image, uint8 3 x h x w, from `iformer.tasks.segmentation.dataset.evaluation_transform`.
            size: height and width (H, W) of the result.

        Raises:
            DataError: `require_finite` is set, and a logit is NaN or infinite.
        """


class WholeImages(PixelClassifier):
    """A Semantic FPN, applied to whole images or in sliding windows."""

    def __init__(self, network: Segmenter, *, device: torch.device, sliding: bool) -> None:
        """Wrap a network that is on `device`; with `sliding`, overlapping windows of `config.size` are used."""
        config = network.config
        super().__init__(config.backbone.name, network.metadata.class_names, config.colours, config.preprocessing)
        self._network, self._device = network, device
        self._window = config.size if sliding else None
        self._normalize = Normalize(config.preprocessing).to(device)

    def classes(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        normalized = self._normalize(pixels[None].to(self._device))
        with finite_outputs(self._network.head) if self.require_finite else nullcontext():
            return segment(self._network, normalized, size, window=self._window)


class Letterboxes(PixelClassifier):
    """`PixelClassifier` that wraps a light segmenter or an artifact: letterboxed images to logits."""

    def __init__(
        self,
        forward: Forward,
        name: str,
        class_names: tuple[str, ...],
        colours: Colours,
        preprocessing: Preprocessing,
    ) -> None:
        """Wrap `forward`, which maps uint8 B x 3 x h x w to `logits`, B x K x h/s x w/s."""
        super().__init__(name, class_names, colours, preprocessing)
        self._forward = forward

    @classmethod
    def of_network(cls, network: LightSegmenter, *, device: torch.device) -> Letterboxes:
        """Wrap a light segmenter that is on `device`."""
        config = network.config
        normalize = Normalize(config.preprocessing).to(device)

        def forward(pixels: Tensor) -> dict[str, Tensor]:
            return {LOGITS: network.coarse_logits(normalize(pixels.to(device)))}

        names = network.metadata.class_names
        return cls(forward, config.backbone.name, names, config.colours, config.preprocessing)

    @classmethod
    def of_artifact(cls, runner: ArtifactRunner) -> Letterboxes:
        """Wrap an artifact as its record describes it.

        Raises:
            UserError: the record does not describe a segmenter.
        """
        info = runner.info
        try:
            shown = SegmentationDisplay.from_plain(info.postprocess or {})
            check(len(shown.palette) == info.num_classes, shown, "palette", f"{info.num_classes} colours")
        except ConfigError as error:
            raise UserError(f"{runner.path}: its record has no colours for classes: {error}") from None
        if info.preprocessing.letterbox is None or info.shapes.get(LOGITS, ())[:1] != (info.num_classes,):
            raise UserError(f"{runner.path}: its record does not describe a segmenter's outputs")
        return cls(runner, info.network, info.class_names, shown.palette, info.preprocessing)

    def classes(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        logits = self._forward(pixels[None])[LOGITS]
        if self.require_finite:
            check_finite(logits)
        return letterboxed_classes(logits, self.preprocessing.size, size)


Subject = Segmenter | LightSegmenter | ArtifactRunner | PixelClassifier
"""A segmenter that can be evaluated: a network in eval mode, an artifact, or the result of `pixel_classifier`."""


def pixel_classifier(subject: Subject, *, device: torch.device, sliding: bool = False) -> PixelClassifier:
    """Return a segmenter (in eval mode, on `device`) or an artifact as a `PixelClassifier`.

    A `PixelClassifier` is returned unchanged.

    Raises:
        UserError: `sliding` is set and the input has a fixed size, or an artifact's record does not describe a
            segmenter.
    """
    if isinstance(subject, PixelClassifier):
        return subject
    if isinstance(subject, Segmenter):
        return WholeImages(subject, device=device, sliding=sliding)
    if sliding:
        raise UserError("--sliding is for Semantic FPN, which takes images of any sizes; leave it out")
    if isinstance(subject, ArtifactRunner):
        return Letterboxes.of_artifact(subject)
    return Letterboxes.of_network(subject, device=device)


def letterboxed_classes(logits: Tensor, input_size: tuple[int, int], size: tuple[int, ...]) -> Tensor:
    """Return the classes of one letterboxed image at its original size (H, W): int64 H x W.

    Args:
        logits: 1 x K x h/s x w/s, for any s.
        input_size: height and width (h, w) of the network's input.
        size: height and width of the image before it was letterboxed.
    """
    height, width = content_size((size[0], size[1]), input_size)
    at_input = F.interpolate(logits.float(), size=input_size, mode="bilinear", align_corners=False)
    content = at_input[:, :, :height, :width]
    return F.interpolate(content, size=tuple(size), mode="bilinear", align_corners=False)[0].argmax(0)


def postprocessor(info: ArtifactInfo) -> Callable[[Outputs], Any]:
    """Return the postprocessing to benchmark: from an artifact's outputs to classes at the input's size."""
    size = info.preprocessing.size

    def classes(outputs: Outputs) -> list[Tensor]:
        return [letterboxed_classes(image[None], size, size) for image in outputs[LOGITS]]

    return classes


def segment(model: nn.Module, image: Tensor, size: tuple[int, ...], *, window: int | None = None) -> Tensor:
    """Return the classes of one normalised image (1 x 3 x h x w) at another size (H, W): int64 H x W.

    Args:
        model: function from images, B x 3 x h x w, to logits, B x K x h x w.
        window: side, in pixels, of the windows of `sliding_logits`. None: the whole image at once.
    """
    height, width = image.shape[2:]
    # the backbone needs a minimum side, and an image may be thinner
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
        network: function from images, B x 3 x h x w, to logits, B x K x h x w.
        images: B x 3 x H x W, normalised.
        window: side of the windows, in pixels; a shorter side of the image is used whole.
        overlap: smallest overlap of neighbouring windows, as a share of their side.

    Returns:
        Logits, B x K x H x W.
    """
    height, width = images.shape[2:]
    step = max(1, round(window * (1 - overlap)))
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for top in starts(height, window, step):
        for left in starts(width, window, step):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = network(images[:, :, rows, columns])
            if total is None:
                total = logits.new_zeros((len(images), logits.shape[1], height, width))
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count
