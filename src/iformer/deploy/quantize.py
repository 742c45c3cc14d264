"""INT8 for every runtime: calibration images, which layers suffer most, and how many of them go back.

A runtime's own file quantizes a graph, keeping the layers it is told to. Everything else is here and the same
for all: the images that the ranges come from, the order in which layers go back to higher precision, and the
search for the fewest of them with which the metric holds.

Shape letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import ImageSource, read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import Runner
from iformer.deploy.runtimes.registry import MAX_DROP
from iformer.deploy.spec import AccuracyControl, ExportSpec, Predictor
from iformer.errors import UserError

SENSITIVITY_IMAGES = 16
"""Images for the order of the layers; it needs far fewer than the ranges."""

MAX_KEPT_SHARE = 0.5
"""Share of the layers that may go back; beyond it fp16 or fp32 is the better artifact."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a quantized export needs: where the ranges come from, and what may be lost."""

    images: Sequence[ImageSource]
    """Photographs of the network's kind, classes mixed (LiteRT's ranges are moving averages), not among those that
    the metric is measured on."""
    measure: Callable[[Predictor], Mapping[str, Any]]
    """Metrics on labelled images, in percent; `metric` is one of them."""
    metric: str = "top1"
    max_drop: float = MAX_DROP
    """Points that the artifact's metric may lie below the network's own."""
    accuracy_control: bool = False
    """OpenVINO: NNCF chooses the operations that go back, by the metric itself."""
    data: str = ""
    """The name of the data, for the record."""
    report: Callable[[str], None] = lambda line: None
    """Told a line after each attempt."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One quantized artifact and what it is worth."""

    kept: tuple[str, ...]
    """Layers that it has in higher precision."""
    metrics: Mapping[str, Any]
    drop: float
    """Points of the metric below the network's own; negative where the artifact is better."""


def read_calibration_images(paths: Sequence[ImageSource], preprocessing: Preprocessing) -> Tensor:
    """Image files as uint8 N x 3 x H x W, as the network sees them.

    Raises:
        UserError: there are none.
        DataError: one cannot be read.
    """
    if not paths:
        raise UserError("INT8 needs images to calibrate with; give a data set or a folder of images")
    transform = eval_transform(preprocessing)
    return torch.stack([transform(read_image(path)) for path in paths])


def network_predictor(graph: ExportSpec) -> Predictor:
    """The folded network behind its normalisation, as it is before it is quantized."""
    normalize = Normalize(graph.preprocessing)

    @torch.inference_mode()
    def predict(images_B3HW: Tensor) -> Tensor:
        logits_BK: Tensor = graph.network(normalize(images_B3HW).contiguous(memory_format=torch.channels_last))
        return logits_BK

    return predict


def quantize_until_it_holds(
    graph: ExportSpec, wishes: Quantization, build: Callable[[ExportSpec], Runner], reference: Mapping[str, Any]
) -> tuple[Runner, list[Attempt]]:
    """The artifact with the fewest layers put back whose metric holds.

    The number of layers grows 0, 1, 2, 4, …; the most sensitive go first.

    Args:
        graph: the folded network; its calibration has the images.
        wishes: the metric and how far it may fall.
        build: converts a graph and loads the result, which takes the place of the one before.
        reference: the network's own metrics.

    Returns:
        The artifact that holds, and all attempts; the last one is it.

    Raises:
        UserError: the metric falls too far even with `MAX_KEPT_SHARE` of the layers as they were.
    """
    assert graph.calibration is not None
    own = reference[wishes.metric]
    control = None
    if wishes.accuracy_control:
        control = AccuracyControl(
            measure=lambda predictor: float(wishes.measure(predictor)[wishes.metric]), max_drop=wishes.max_drop
        )
    attempts: list[Attempt] = []
    for kept in _growing(graph, alone=control is not None):
        runner = build(replace(graph, calibration=replace(graph.calibration, kept=kept, control=control)))
        metrics = wishes.measure(runner)
        attempts.append(Attempt(kept=kept, metrics=metrics, drop=own - metrics[wishes.metric]))
        wishes.report(
            f"{wishes.metric} {metrics[wishes.metric]:.2f} %, the network's own {own:.2f} %, "
            f"with {len(kept)} layers left as they were"
        )
        if attempts[-1].drop <= wishes.max_drop:
            return runner, attempts
        del runner
    tried = ", ".join(f"{attempt.drop:.2f} with {len(attempt.kept)}" for attempt in attempts)
    raise UserError(
        f"{wishes.metric} falls by more than {wishes.max_drop:g} points from {own:.2f} % (by layers left as they "
        f"were: {tried}); allow a larger --max-drop, or calibrate with other images"
    )


def summary(
    graph: ExportSpec, wishes: Quantization, reference: Mapping[str, Any], attempts: Sequence[Attempt]
) -> dict[str, dict[str, Any]]:
    """The fields `accuracy` and `quantization` of the record."""
    assert graph.calibration is not None
    held = attempts[-1]
    return {
        "accuracy": {
            "data": wishes.data,
            "metric": wishes.metric,
            "drop": held.drop,
            "metrics": dict(held.metrics),
            "network": dict(reference),
        },
        "quantization": {
            "calibration_images": len(graph.calibration.images),
            "max_drop": wishes.max_drop,
            "layers": len(layers(graph.network)),
            "kept": list(held.kept),
            "tried": [{"kept": len(attempt.kept), "drop": attempt.drop} for attempt in attempts],
        },
    }


def _growing(graph: ExportSpec, *, alone: bool) -> Iterator[tuple[str, ...]]:
    """Sets of layers to leave as they are: none, then the most sensitive, twice as many each time."""
    yield ()
    if alone:
        return
    ranked = [name for name, _ in rank_by_sensitivity(graph)]
    count, most = 1, max(1, int(MAX_KEPT_SHARE * len(ranked)))
    while count <= most:
        yield tuple(ranked[:count])
        count = most if count < most < 2 * count else 2 * count


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that are quantized, convolutions and linear ones, by name and in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


@torch.inference_mode()
def rank_by_sensitivity(graph: ExportSpec) -> list[tuple[str, float]]:
    """The layers and how much the logits suffer when one alone is quantized, the worst first.

    Weights are rounded to 8 bits a channel, inputs and outputs to 8 bits a tensor over the range they have on
    the calibration images, as all runtimes do. The figure is the mean squared error of the logits.
    """
    assert graph.calibration is not None
    network = graph.network
    images = Normalize(graph.preprocessing)(graph.calibration.images[:SENSITIVITY_IMAGES])
    expected_NK: Tensor = network(images)
    found = []
    for name, layer in layers(network).items():
        with ExitStack() as stack:
            stack.enter_context(_rounded(layer))
            error = F.mse_loss(network(images), expected_NK).item()
        found.append((name, error))
    return sorted(found, key=lambda item: -item[1])


class _rounded:  # noqa: N801 - a context manager, named as one
    """A layer as it is in INT8, inside the block."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __enter__(self) -> None:
        layer: Any = self.layer
        self.weight = layer.weight
        layer.weight = nn.Parameter(_round_weight(self.weight), requires_grad=False)
        self.hooks = [
            layer.register_forward_pre_hook(lambda _module, inputs: (_round_tensor(inputs[0]),)),
            layer.register_forward_hook(lambda _module, _inputs, output: _round_tensor(output)),
        ]

    def __exit__(self, *_: object) -> None:
        layer: Any = self.layer
        layer.weight = self.weight
        for hook in self.hooks:
            hook.remove()


def _round_weight(weight: Tensor) -> Tensor:
    axes = tuple(range(1, weight.ndim))
    scale = (weight.abs().amax(axes, keepdim=True) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale).round() * scale


def _round_tensor(x: Tensor) -> Tensor:
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x - low) / scale).round() * scale + low
