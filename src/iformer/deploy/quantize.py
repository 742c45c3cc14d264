"""INT8 for every runtime: calibration images, the sensitivity of layers, and the search for layers to keep.

Each runtime's module quantizes all layers except the ones in `Calibration.kept`. This module keeps more and more
layers until the metric holds. Shape letters: N images, B batch, C channels, H and W sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import ImageSource, read_input
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.exportable import Forward, Outputs, named
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.registry import MAX_DROP, Int8Scheme
from iformer.deploy.spec import AccuracyControl, ExportSpec
from iformer.errors import UserError, counted

SENSITIVITY_IMAGES = 16
"""Number of images for ranking the layers by sensitivity; calibration needs far more images."""

MAX_KEPT_SHARE = 0.5
"""Largest share of layers that may stay in higher precision; beyond it fp16 or fp32 is the better artifact."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Options of a quantized export: calibration images, and the metric that must hold."""

    images: Sequence[ImageSource]
    """Calibration images, similar to the images that the network will see, and in random order, because LiteRT's
    ranges are moving averages. They must not include images of `measure`."""
    measure: Callable[[Forward], Mapping[str, Any]]
    """Function that returns metrics on labelled images, in percent; `metric` is one of the keys."""
    metric: str = "top1"
    max_drop: float = MAX_DROP
    """Largest allowed drop of the metric below the network's, in percentage points."""
    accuracy_control: bool = False
    """OpenVINO only: NNCF chooses by the metric which operations stay in higher precision."""
    scheme: Int8Scheme = "asymmetric"
    """ONNX only: ranges of activations. "symmetric" is signed and around zero, as TensorRT requires."""
    data: str = ""
    """Name of the data, for the record."""
    report: Callable[[str], None] = lambda line: None
    """Function that is called with one line of text after each attempt."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One quantized artifact of the search, and its metric."""

    kept: tuple[str, ...]
    """Names of the layers in higher precision."""
    metrics: Mapping[str, Any]
    drop: float
    """Percentage points below the network's metric; negative if the artifact is better."""


def few_images_note(images: int, *, metric: str, max_drop: float) -> list[str]:
    """Return a line if one validation image is worth more points of the metric than may be lost; else nothing.

    Args:
        images: number of validation images.
        metric: printed name of the metric.
        max_drop: percentage points that may be lost.
    """
    share = 100 / max(1, images)
    if max_drop >= share:
        return []
    return [
        f"one of {counted(images, 'validation image')} is worth about {share:.3g} points of {metric}, and "
        f"--max-drop is {max_drop:g}: one changed answer sends layers back to higher precision; give more "
        f"validation images, or --max-drop {math.ceil(10 * share) / 10:g}"
    ]


def read_calibration_images(paths: Sequence[ImageSource], preprocessing: Preprocessing) -> Tensor:
    """Read image files as one uint8 tensor, N x C x H x W, resized and cropped for the network.

    Raises:
        UserError: `paths` is empty.
        DataError: an image cannot be read.
    """
    if not paths:
        raise UserError("INT8 needs images to calibrate with; give a data set or a folder of images")
    transform = eval_transform(preprocessing)
    return torch.stack([transform(read_input(path, preprocessing)) for path in paths])


def network_forward(spec: ExportSpec) -> Forward:
    """Return the folded network with its normalisation as a function of uint8 images; nothing is quantized."""
    normalize = Normalize(spec.preprocessing)

    @torch.inference_mode()
    def forward(images_BCHW: Tensor) -> Outputs:
        fed = normalize(images_BCHW).contiguous(memory_format=torch.channels_last)
        return named(spec.outputs, spec.network(fed))

    return forward


def quantize_until_it_holds(
    spec: ExportSpec,
    quantization: Quantization,
    build: Callable[[ExportSpec], ArtifactRunner],
    reference: Mapping[str, Any],
) -> tuple[ArtifactRunner, list[Attempt]]:
    """Quantize a network, with more and more layers kept in higher precision until the metric holds.

    The number of kept layers grows 0, 1, 2, 4, …; the most sensitive layers are kept first.

    Args:
        spec: the folded network, with calibration images.
        quantization: the metric and the allowed drop.
        build: function that converts a spec and loads the artifact; each artifact overwrites the previous one.
        reference: the network's metrics without quantization.

    Returns:
        The artifact, and all attempts; the last attempt describes the artifact.

    Raises:
        UserError: the metric falls too far even with `MAX_KEPT_SHARE` of the layers kept.
    """
    assert spec.calibration is not None
    metric, max_drop = quantization.metric, quantization.max_drop
    own = reference[metric]
    control = None
    if quantization.accuracy_control:
        control = AccuracyControl(
            measure=lambda forward: float(quantization.measure(forward)[metric]), max_drop=max_drop
        )
    attempts: list[Attempt] = []
    for kept in _growing(spec, alone=control is not None):
        runner = build(replace(spec, calibration=replace(spec.calibration, kept=kept, control=control)))
        metrics = quantization.measure(runner)
        attempts.append(Attempt(kept=kept, metrics=metrics, drop=own - metrics[metric]))
        quantization.report(
            f"{metric} {metrics[metric]:.2f} % with {len(kept)} layers in higher precision; "
            f"the network has {own:.2f} %"
        )
        if attempts[-1].drop <= max_drop:
            return runner, attempts
        del runner
    tried = ", ".join(f"{attempt.drop:.2f} with {len(attempt.kept)}" for attempt in attempts)
    raise UserError(
        f"{metric} falls by more than {max_drop:g} points from {own:.2f} % (by number of layers in higher "
        f"precision: {tried}); allow a larger --max-drop, or calibrate with other images"
    )


def summary(
    spec: ExportSpec, quantization: Quantization, reference: Mapping[str, Any], attempts: Sequence[Attempt]
) -> dict[str, dict[str, Any]]:
    """Return the record's fields `accuracy` and `quantization`."""
    assert spec.calibration is not None
    final = attempts[-1]
    return {
        "accuracy": {
            "data": quantization.data,
            "metric": quantization.metric,
            "drop": final.drop,
            "metrics": dict(final.metrics),
            "network": dict(reference),
        },
        "quantization": {
            "calibration_images": len(spec.calibration.images),
            "scheme": spec.calibration.scheme,
            "max_drop": quantization.max_drop,
            "layers": len(layers(spec.network)),
            "kept": list(final.kept),
            "tried": [{"kept": len(attempt.kept), "drop": attempt.drop} for attempt in attempts],
        },
    }


def _growing(spec: ExportSpec, *, alone: bool) -> Iterator[tuple[str, ...]]:
    """Yield the layers to keep for each attempt: none, then the 1, 2, 4, … most sensitive layers."""
    yield ()
    if alone:
        return
    ranked = [name for name, _ in rank_by_sensitivity(spec)]
    count, most = 1, max(1, int(MAX_KEPT_SHARE * len(ranked)))
    while count <= most:
        yield tuple(ranked[:count])
        count = most if count < most < 2 * count else 2 * count


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be quantized, convolutions and linear layers, by name in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


@torch.inference_mode()
def rank_by_sensitivity(spec: ExportSpec) -> list[tuple[str, float]]:
    """Return (layer name, error of the network's outputs if only this layer is quantized), largest error first.

    Weights are rounded to 8 bits per channel, inputs and outputs to 8 bits per tensor over their range on the
    calibration images, as all runtimes do. The error is the sum over the outputs of the mean squared error divided
    by the output's mean square, because outputs differ in scale: boxes are hundreds of pixels, scores at most 1.
    """
    assert spec.calibration is not None
    forward = network_forward(spec)
    images = spec.calibration.images[:SENSITIVITY_IMAGES]
    expected = forward(images)
    size = {key: max(output.square().mean().item(), 1e-12) for key, output in expected.items()}
    found = []
    for name, layer in layers(spec.network).items():
        with _rounded(layer):
            actual = forward(images)
        found.append((name, sum(F.mse_loss(actual[key], expected[key]).item() / size[key] for key in expected)))
    return sorted(found, key=lambda item: -item[1])


@contextmanager
def _rounded(layer: Any) -> Iterator[None]:
    """Simulate INT8 in one layer while the block runs."""
    weight = layer.weight
    layer.weight = nn.Parameter(_round_weight(weight), requires_grad=False)
    hooks = [
        layer.register_forward_pre_hook(lambda _module, inputs: (_round_tensor(inputs[0]),)),
        layer.register_forward_hook(lambda _module, _inputs, output: _round_tensor(output)),
    ]
    try:
        yield
    finally:
        layer.weight = weight
        for hook in hooks:
            hook.remove()


def _round_weight(weight: Tensor) -> Tensor:
    axes = tuple(range(1, weight.ndim))
    scale = (weight.abs().amax(axes, keepdim=True) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale).round() * scale


def _round_tensor(x: Tensor) -> Tensor:
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x - low) / scale).round() * scale + low
