"""The input of every exporter: a folded network, its preprocessing, and the form of the artifact.

Shape letters: B batch, C channels, H and W the image's sides.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iformer.config.checking import to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.data.transforms import Normalize
from iformer.deploy.exportable import Exportable, Forward, Limits
from iformer.deploy.runtimes.registry import Int8Scheme
from iformer.errors import UserError

Layout = Literal["NHWC", "NCHW"]

EMBEDDED = (
    "class_names", "preprocessing", "network", "task", "precision", "normalized_by", "postprocess", "checksum",
)  # fmt: skip
"""Keys of the metadata inside an artifact. Artifacts of early versions have only the first three; only detectors,
segmenters and multi-label classifiers have `postprocess`."""

INPUT = "image"
"""Name of the input, in formats whose inputs have names."""


@dataclass(frozen=True, kw_only=True)
class AccuracyControl:
    """Metric for a converter that itself chooses which operations stay in higher precision."""

    measure: Callable[[Forward], float]
    """Function that returns the metric in percent."""
    max_drop: float
    """Largest allowed drop of the metric, in percentage points."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Settings of a quantized conversion; `iformer.deploy.quantize` chooses the layers in `kept`."""

    images: Tensor
    """Images for the ranges of the activations: uint8 N x C x H x W, at the network's input size."""
    kept: tuple[str, ...] = ()
    """Layers that stay in higher precision, as module names of the folded network."""
    scheme: Int8Scheme = "asymmetric"
    """ONNX only: one of `iformer.deploy.runtimes.registry.INT8_SCHEMES`."""
    control: AccuracyControl | None = None
    """OpenVINO only: the metric for NNCF's accuracy control; None to quantize without it."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """A network prepared for conversion, and the form of the artifact; see `make_spec`."""

    network: nn.Module
    """The folded network, on the CPU with contiguous weights. It maps normalised float32 images, B x C x H x W, to
    a tensor or a tuple of tensors."""
    name: str
    task: str = "classify"
    outputs: tuple[str, ...] = ("logits",)
    """Names of the outputs, in the network's order."""
    class_logits: str | None = None
    """Name of the output with one logit per class; None if no output has them."""
    num_classes: int
    channels: int = 3
    """Number of channels of an image; 3 for RGB."""
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    postprocess: Mapping[str, Any] | None = None
    """Settings that turn outputs into answers; see `Exportable.postprocess`."""
    batch: int | None
    """Number of images per call; None means any number."""
    raw: bool
    """Export the network without its normalisation; the caller normalises."""
    precision: str
    calibration: Calibration | None = None
    """Settings of the quantization; None if the precision is not a quantized one."""
    opset: int | None = None
    """ONNX only: version of the operator set; None means the version of the installed torch's exporter."""
    backend: str | None = None
    """ExecuTorch only: a name in `iformer.deploy.runtimes.registry.BACKENDS`; None means the default."""
    soc_model: str | None = None
    """ExecuTorch's backend QNN only: the chip that the program is compiled for."""
    limits: Limits | None = None
    """Export restrictions of the network; see `Exportable.limits`."""
    plain: bool = False
    """Use the runtime's converter without this package's rewrites of the graph."""

    def module(self, layout: Layout, *, float_first: bool = False) -> nn.Module:
        """Return the network preceded by its normalisation, for images in `layout`; if `raw`, the network itself.

        Args:
            layout: layout of the input.
            float_first: convert the bytes to floats before, not after, the transposition.
        """
        if self.raw:
            return self.network
        return WithPreprocessing(self.network, self.preprocessing, layout, float_first=float_first).eval()

    def example(self, layout: Layout, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return an input of zeros for `module(layout)`; if `raw`, float32 B x C x H x W."""
        # exporters fix the batch to 1 if the example has one image
        batch = 2 if self.batch is None else self.batch
        return self._fed(
            torch.zeros(batch, self.channels, *self.preprocessing.size, dtype=torch.uint8), layout, dtype
        )

    def calibration_inputs(self, layout: Layout, dtype: torch.dtype = torch.uint8) -> Iterator[Tensor]:
        """Yield the calibration images as inputs of `module(layout)`, in batches of the artifact's batch size."""
        assert self.calibration is not None
        count = self.batch or 1
        images = self.calibration.images
        for start in range(0, len(images), count):
            indices = torch.arange(start, start + count) % len(images)  # the last batch wraps around
            yield self._fed(images[indices], layout, dtype)

    def embedded(self) -> dict[str, str]:
        """Return the metadata that is stored inside the artifact, in formats that can hold metadata."""
        found = embedded(self.class_names, self.preprocessing, self.postprocess)
        found |= {"network": self.name, "task": self.task, "precision": self.precision}
        found |= {"normalized_by": "caller" if self.raw else "graph"}
        return found | {"checksum": embedded_hash(found)}

    def _fed(self, images_BCHW: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
        if self.raw:
            normalized: Tensor = Normalize(self.preprocessing)(images_BCHW)
            return normalized.contiguous()
        if layout == "NHWC":
            images_BCHW = images_BCHW.permute(0, 2, 3, 1)
        return images_BCHW.to(dtype).contiguous()


class WithPreprocessing(nn.Module):
    """A network preceded by its normalisation. It maps pixel values of 0 to 255 to the network's outputs.

    Decoders and cameras return uint8 H x W x C images. Transposing the bytes in the artifact costs less than in
    the caller's code.
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, layout: Layout, *, float_first: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.float_first = float_first
        std = torch.tensor(preprocessing.std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(preprocessing.mean)[:, None, None] / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> Any:
        if self.float_first:
            image = image.float()
        if self.layout == "NHWC":
            # the memory of one channel has both layouts at once, which ExecuTorch refuses at run time
            image = image.permute(0, 3, 1, 2) if image.shape[3] > 1 else image.reshape(-1, 1, *image.shape[1:3])
        return self.model(image.float() * self.scale + self.shift)


def make_spec(
    network: Exportable,
    *,
    preprocessing: Preprocessing | None = None,
    batch: int | None = 1,
    raw: bool = False,
    precision: str = "fp32",
    calibration: Calibration | None = None,
    opset: int | None = None,
    backend: str | None = None,
    soc_model: str | None = None,
) -> ExportSpec:
    """Fold a network and return its spec. If `preprocessing` is None, it is taken from the network's metadata.

    Raises:
        UserError: `network.limits` does not allow the batch or `raw`, or the network does not support the size.
    """
    preprocessing = preprocessing or network.metadata.preprocessing
    limits = network.limits
    if limits is not None:
        if batch not in (None, limits.batch):
            raise UserError(f"batch is {batch}; this network takes {limits.batch} image in one call")
        if raw:
            raise UserError("this network cannot be exported without its normalisation")
        batch = limits.batch
    return ExportSpec(
        network=folded_for_export(network, preprocessing.size),
        name=network.name,
        task=network.metadata.task,
        outputs=network.outputs,
        class_logits=network.class_logits,
        num_classes=network.num_classes,
        channels=network.channels,
        preprocessing=preprocessing,
        postprocess=network.postprocess,
        class_names=network.metadata.class_names,
        batch=batch,
        raw=raw,
        precision=precision,
        calibration=calibration,
        opset=opset,
        backend=backend,
        soc_model=soc_model,
        limits=limits,
    )


def folded_for_export(network: Exportable, size: tuple[int, int] | None = None) -> nn.Module:
    """Return a folded copy of a network on the CPU, for inputs of `size` (None: the network's own input size).

    Weights and buffers are contiguous and share no memory, because some converters misread other strides, and
    litert-torch merges buffers that share memory into one constant.
    """
    folded = copy.deepcopy(network.folded(size or network.metadata.preprocessing.size)).cpu()
    for module in folded.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().contiguous(), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.detach().clone(memory_format=torch.contiguous_format))
    return folded.eval()


def embedded(
    class_names: tuple[str, ...], preprocessing: Preprocessing, postprocess: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return class names, preprocessing and postprocessing as JSON strings, for formats with string metadata."""
    plain = to_plain(preprocessing)
    for name in ("value_range", "letterbox"):  # artifacts of early versions have no such fields
        if plain[name] is None:
            del plain[name]
    strings = {
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "preprocessing": json.dumps(plain),
    }
    return strings if postprocess is None else strings | {"postprocess": json.dumps(postprocess)}


def embedded_hash(found: Mapping[str, str]) -> str:
    """Return the SHA-256 in hex of embedded metadata, as JSON; only keys in `EMBEDDED` except `checksum` count."""
    plain = {name: found[name] for name in EMBEDDED if name in found and name != "checksum"}
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def operation_counts(operations: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Return the record's `graph`: the number of operations of each kind, most frequent first, and `more`."""
    return {"operations": dict(sorted(operations.items(), key=lambda item: (-item[1], item[0]))), **more}
