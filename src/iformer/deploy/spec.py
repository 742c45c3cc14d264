"""What every exporter starts from: a folded network, its preprocessing, and how it is to be fed.

Shape letters: B batch, H and W the image's sides, K classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iformer.config.checking import to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.data.transforms import Normalize
from iformer.models.classifier import Classifier
from iformer.models.folding import fold

Layout = Literal["NHWC", "NCHW"]

INPUT, OUTPUT = "image", "logits"
"""Names of the input and the output where a format lets us choose them."""


Predictor = Callable[[Tensor], Tensor]
"""uint8 images, B x 3 x H x W, to logits, B x K: a network behind its normalisation, or an artifact."""


@dataclass(frozen=True, kw_only=True)
class AccuracyControl:
    """For a converter that itself finds out which operations have to stay as they are."""

    measure: Callable[[Predictor], float]
    """The metric in percent."""
    max_drop: float
    """Points that it may fall by."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a network becomes INT8; `iformer.deploy.quantize` decides on it."""

    images: Tensor
    """uint8 N x C x H x W, images of the network's size, from which the ranges of the activations are taken."""
    kept: tuple[str, ...] = ()
    """Layers (names of the folded network's modules) that stay as they are."""
    control: AccuracyControl | None = None
    """OpenVINO only."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """A network made ready for conversion; `graph_of` makes one of ours."""

    network: nn.Module
    """Float32 B x C x H x W to logits; on the CPU, its weights contiguous."""
    name: str
    task: Literal["classify", "detect", "segment"] = "classify"
    num_classes: int
    channels: int = 3
    """Channels of an image: 3 for RGB."""
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    batch: int | None
    """Images in one call; None: any number."""
    raw: bool
    """The caller normalises."""
    precision: str
    calibration: Calibration | None = None
    """There where the precision is a quantized one."""
    plain: bool = False
    """Converted as the runtime's converter does it, without the forms that were chosen for our networks."""

    def module(self, layout: Layout) -> nn.Module:
        """The network behind its normalisation, for images in `layout`; with `raw` the network itself."""
        if self.raw:
            return self.network
        return WithPreprocessing(self.network, self.preprocessing, layout).eval()

    def example(self, layout: Layout, dtype: torch.dtype = torch.uint8) -> Tensor:
        """An input of zeros for `module(layout)`; float32, B x C x H x W, with `raw`."""
        height, width = self.preprocessing.size
        # exporters that see an example of one image take its batch for fixed
        batch = 2 if self.batch is None else self.batch
        if self.raw:
            return torch.zeros(batch, self.channels, height, width)
        if layout == "NHWC":
            return torch.zeros(batch, height, width, self.channels, dtype=dtype)
        return torch.zeros(batch, self.channels, height, width, dtype=dtype)

    def calibration_inputs(self, layout: Layout, dtype: torch.dtype = torch.uint8) -> Iterator[Tensor]:
        """The calibration images as `module(layout)` takes them, in calls of the artifact's batch."""
        assert self.calibration is not None
        normalize = Normalize(self.preprocessing)
        count = self.batch or 1
        images = self.calibration.images
        for images_B3HW in torch.split(images[: len(images) // count * count], count):
            if self.raw:
                yield normalize(images_B3HW).contiguous()
            elif layout == "NHWC":
                yield images_B3HW.permute(0, 2, 3, 1).to(dtype).contiguous()
            else:
                yield images_B3HW.to(dtype).contiguous()

    def embedded(self) -> dict[str, str]:
        """What the artifact itself carries where its format can, so that it is complete without its record."""
        return embedded(self.class_names, self.preprocessing) | {"network": self.name}


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a converted network is fed, and what the format made of it."""

    input_name: str = INPUT
    output_name: str = OUTPUT
    input_dtype: Literal["uint8", "float32", "image"]
    input_layout: Layout
    graph: dict[str, Any] = field(default_factory=dict)


class WithPreprocessing(nn.Module):
    """A network behind its normalisation: RGB values of 0 to 255 to logits, B x K.

    B x H x W x 3 of uint8 is how decoders and cameras hand out images; the one transposition of bytes in
    the graph is cheaper than one in the caller's code.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        std = torch.tensor(preprocessing.std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(preprocessing.mean)[:, None, None] / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        if self.layout == "NHWC":
            image = image.permute(0, 3, 1, 2)
        logits: Tensor = self.model(image.float() * self.scale + self.shift)
        return logits


def graph_of(
    model: Classifier,
    *,
    preprocessing: Preprocessing | None = None,
    batch: int | None = 1,
    raw: bool = False,
    precision: str = "fp32",
    calibration: Calibration | None = None,
) -> ExportSpec:
    """One of our networks, folded, with its names and preprocessing; None takes the network's own."""
    return ExportSpec(
        network=folded_for_export(model),
        name=model.config.name,
        task=model.metadata.task,
        num_classes=model.num_classes,
        channels=model.config.in_chans,
        preprocessing=preprocessing or model.metadata.preprocessing,
        class_names=model.metadata.class_names,
        batch=batch,
        raw=raw,
        precision=precision,
        calibration=calibration,
    )


def folded_for_export(model: Classifier) -> Classifier:
    """A folded copy on the CPU with contiguous weights; some converters read others in the wrong order."""
    network = copy.deepcopy(fold(model)).cpu()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().contiguous(), requires_grad=False))
    return network.eval()


def embedded(class_names: tuple[str, ...], preprocessing: Preprocessing) -> dict[str, str]:
    """Class names and preprocessing as the strings that formats with metadata hold."""
    return {
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "preprocessing": json.dumps(to_plain(preprocessing)),
    }


def operation_counts(operations: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """The part of a record that says what a format made of the network, the commonest operations first."""
    return {"operations": dict(sorted(operations.items(), key=lambda item: (-item[1], item[0]))), **more}
