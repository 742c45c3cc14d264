"""What export needs to know about a segmenter: its output, the comparison of classes, and the INT8 metric.

Shape letters: N images, B batch, K classes, h and w the sides of the logits, H and W the sides of the
input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.loader import build_loader
from iformer.data.sources.masks import load_semantic
from iformer.deploy.exportable import Agreement, Forward, Outputs
from iformer.deploy.quantize import Quantization, few_images_note
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.class_order import refuse_unknown
from iformer.tasks.export import calibration_images, check_side
from iformer.tasks.registry import find_task
from iformer.tasks.segmentation.dataset import with_class_order
from iformer.tasks.segmentation.evaluate import evaluate, evaluation_images
from iformer.tasks.segmentation.inference import LOGITS, Letterboxes, SegmentationDisplay
from iformer.tasks.trained_split import load_as_trained

_STRIDE = 32
"""Each side of an input is a multiple of this number of pixels, so that no feature map's side is rounded up."""


class CoarseSegmenter(nn.Module):
    """A segmenter without the final resize: normalised images, B x 3 x H x W, to logits, B x K x H/4 x W/4."""

    def __init__(self, segmenter: Segmenter | LightSegmenter) -> None:
        super().__init__()
        self.pyramid, self.head = segmenter.pyramid, segmenter.head

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pyramid(images)
        logits: Tensor = self.head(list(maps.values()) if isinstance(maps, dict) else maps)
        return logits


class ExportableSegmenter:
    """A segmenter with the interface `iformer.deploy.exportable.Exportable`."""

    outputs = (LOGITS,)
    class_logits = None
    limits = None
    channels = 3

    def __init__(self, model: Segmenter | LightSegmenter) -> None:
        """Wrap a segmenter that is in eval mode."""
        self._segmenter, self.model = model, CoarseSegmenter(model)
        self.name = model.config.backbone.name
        self.metadata: Metadata = replace(model.metadata, preprocessing=letterbox_preprocessing(model))
        self.num_classes = model.config.num_classes
        self._display = SegmentationDisplay(palette=model.config.colours)

    @property
    def postprocess(self) -> dict[str, Any]:
        """The colours of the classes: the fields of `SegmentationDisplay` as plain values."""
        return self._display.to_plain()

    def folded(self, size: tuple[int, int]) -> CoarseSegmenter:
        """Return a folded copy.

        Raises:
            UserError: a side is not a multiple of 32.
        """
        check_side(size, _STRIDE)
        return CoarseSegmenter(self._segmenter.fold()).eval()

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare the class of every point where errors of `tolerance` cannot swap the two largest logits."""
        ours, theirs = expected[LOGITS], actual[LOGITS]
        same = ours.argmax(1) == theirs.argmax(1)
        if ours.shape[1] > 1:
            first_two = ours.topk(2, dim=1).values
            clear = first_two[:, 0] - first_two[:, 1] > 2 * tolerance * ours.abs().max()
        else:
            clear = same
        share = float(same[clear].float().mean()) if clear.any() else 1.0
        failures = [f"the class agrees on {share:.3%} of the clear points"] if share < 1 else []
        return Agreement(
            metrics={
                "point_agreement": share,
                "clear_points": int(clear.sum()),
                "all_point_agreement": float(same.float().mean()),
            },
            failures=tuple(failures),
        )


exportable = ExportableSegmenter


def letterbox_preprocessing(model: Segmenter | LightSegmenter) -> Preprocessing:
    """Return the preprocessing of an artifact: a light segmenter's own, or a letterbox for a Semantic FPN.

    As a network, a Semantic FPN takes whole images of any size; the input of an artifact has a fixed size.
    """
    config = model.config
    if isinstance(model, LightSegmenter):
        return config.preprocessing
    red, green, blue = (min(255, max(0, round(255 * value))) for value in config.mean)
    side = config.preprocessing.size[0]
    side += -side % _STRIDE
    return replace(config.preprocessing, size=(side, side), letterbox=(red, green, blue))


def quantization(
    model: Segmenter | LightSegmenter,
    data: str,
    *,
    size: tuple[int, int] | None = None,
    images: int,
    max_drop: float,
    accuracy_control: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Quantization, list[str]]:
    """Prepare a quantized export: calibrate on training images, measure mIoU on validation images.

    For arguments and result see `iformer.tasks.classification.export.quantization`. A Semantic FPN is measured on
    letterboxed images, like its artifact.

    Raises:
        DataError: the data cannot be used, or has a class that the network does not know.
    """
    preprocessing = letterbox_preprocessing(model)
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    splits = load_as_trained(model.metadata, data, lambda share: load_semantic(data, val_split=share))
    chosen = calibration_images(splits.train, splits.val, data, count=images)
    known = model.metadata.class_names
    refuse_unknown(known, splits.val.class_names)
    dataset = evaluation_images(with_class_order(splits.val, known), preprocessing)

    def measure(forward: Forward) -> dict[str, Any]:
        names, colours = model.metadata.class_names, model.config.colours
        segmenter = Letterboxes(forward, model.config.backbone.name, names, colours, preprocessing)
        with build_loader(dataset, batch_size=1, train=False, workers=0) as loader:
            return evaluate(segmenter, loader).metrics

    options = Quantization(
        images=chosen,
        measure=measure,
        metric=find_task("segment").metric,
        max_drop=max_drop,
        accuracy_control=accuracy_control,
        data=f"{data} (validation)",
        report=report,
    )
    few = few_images_note(len(splits.val), metric=find_task("segment").metric_label, max_drop=max_drop)
    return options, [*splits.warnings, *few]
