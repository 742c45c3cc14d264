"""The parity check: an artifact and its network see the same encoded images, and every output is compared.

The package decodes and transforms the images for both. It also normalises them for the network; the artifact
normalises its images itself. Shape letters: N images, B batch, C channels, H and W sides.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.config.checking import to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.data.conversion import CARRIERS
from iformer.data.images import read_input
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import weights_hash
from iformer.deploy.exportable import Exportable, Outputs, named
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import UserError

FP32_TOLERANCE = 1e-3
"""Allowed error of a single-precision artifact, as a share of the output's largest absolute value."""
FP16_TOLERANCE = 2e-2
"""Allowed error of an artifact with weights or arithmetic in half precision, measured like `FP32_TOLERANCE`."""

LEAST_SCALE = {"scores": 0.01}
"""Smallest divisor of the error of an output that may be nearly 0 everywhere. Scores are sigmoids: runtimes differ
by up to 2e-7, and the largest score of an image without objects may be 1e-4."""

_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Result of the comparison of an artifact with its network."""

    images: int
    """Number of compared images, including the generated ones."""
    generated_images: int
    """Number of generated colour patterns among the compared images."""
    max_abs_error: float
    """Largest absolute difference between an output value of the artifact and of the network."""
    max_relative_error: float
    """Largest absolute difference, as a share of the network's largest absolute value of the same output."""
    tolerance: float | None
    """Allowed `max_relative_error`; None for a quantized artifact, which is judged by its metric."""
    metrics: dict[str, Any]
    """Figures of the task's own comparison, such as `top1_agreement`."""
    failures: tuple[str, ...] = ()
    """One line per disagreement; empty if the artifact agrees with the network."""

    def require(self, artifact: Path) -> None:
        """Raise `UserError` if the artifact does not agree with the network."""
        if self.failures:
            raise UserError(f"{artifact.name} does not agree with the network: {'; '.join(self.failures)}")

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON, with the task's figures at the same level."""
        plain = to_plain(self)
        metrics: dict[str, Any] = plain.pop("metrics")
        return plain | metrics


def compare(
    network: Exportable,
    runner: ArtifactRunner,
    images: Sequence[Path] = (),
    *,
    tolerance: float | None = FP32_TOLERANCE,
) -> Parity:
    """Compare an artifact with its network.

    Args:
        network: the network, not folded, because the comparison also checks the folding.
        runner: the artifact in its runtime.
        images: encoded image files. Generated colour patterns are always added, because photographs without
            colour do not reveal swapped channels.
        tolerance: allowed error as a share of the largest value of an output; None reports the error only.

    Raises:
        DataError: an image file cannot be read.
        UserError: the shapes of the artifact's outputs differ from the shapes of the network's.
    """
    info = runner.info
    failures = _record_failures(network, runner)
    generated = generated_images(info.preprocessing)
    device = next(network.model.parameters()).device
    # use the network's own mean and std, so that wrong values in the artifact are detected
    normalize = Normalize(network.metadata.preprocessing).to(device)
    expected_chunks, actual_chunks = [], []
    sources: list[bytes | Tensor | Path] = [*generated, *images]
    for pixels_BCHW in _batches(_pixels(sources, info.preprocessing)):
        with torch.inference_mode():
            outputs = named(network.outputs, network.model(normalize(pixels_BCHW.to(device))))
        expected_chunks.append({name: output.float().cpu() for name, output in outputs.items()})
        actual_chunks.append(runner(pixels_BCHW))
    expected, actual = _joined(expected_chunks), _joined(actual_chunks)
    max_abs_error = max_relative_error = 0.0
    ordered = network.limits is None or network.limits.ordered
    for name, output in expected.items():
        if output.shape != actual[name].shape:
            shapes = [list(value.shape[1:]) for value in (actual[name], output)]
            raise UserError(f"{info.file}: {name} has shape {shapes[0]} per image; the network's has {shapes[1]}")
        error = (output - actual[name]).abs().max().item()
        relative = error / error_scale(name, output.abs().max().item())
        if not math.isfinite(relative):
            failures.append(f"{name} are not finite numbers")
        elif ordered and tolerance is not None and relative > tolerance:
            failures.append(f"{name} differ by {relative:.2g} of the largest value; {tolerance:g} is allowed")
        max_abs_error, max_relative_error = max(max_abs_error, error), max(max_relative_error, relative)
    agreement = network.agreement(expected, actual, tolerance=tolerance or FP16_TOLERANCE)
    if tolerance is not None:
        failures += agreement.failures
    if not ordered:
        max_abs_error = max_relative_error = agreement.max_error
    return Parity(
        images=len(sources),
        generated_images=len(generated),
        max_abs_error=max_abs_error,
        max_relative_error=max_relative_error,
        tolerance=tolerance,
        metrics=agreement.metrics,
        failures=tuple(failures),
    )


def error_scale(name: str, largest: float) -> float:
    """Return the value that the error of an output is divided by.

    Args:
        name: name of the output, such as "scores".
        largest: largest absolute value of the output.
    """
    return max(largest, LEAST_SCALE.get(name, torch.finfo(torch.float32).tiny))


def _record_failures(network: Exportable, runner: ArtifactRunner) -> list[str]:
    info, metadata = runner.info, network.metadata
    failures = []
    if info.class_names != metadata.class_names:
        failures.append("its class names are not the network's")
    ours, theirs = metadata.preprocessing, info.preprocessing
    if (theirs.mean, theirs.std) != (ours.mean, ours.std):
        failures.append("its mean and std are not the network's")
    if theirs.value_range != ours.value_range:
        failures.append("its value_range is not the network's")
    if theirs.letterbox != ours.letterbox:
        failures.append("its letterbox is not the network's")
    if info.postprocess != network.postprocess:
        failures.append("its postprocessing is not the network's")
    if info.weights_sha256 != weights_hash(network.model):
        failures.append("it was made from other weights")
    return failures


def _joined(chunks: Sequence[Outputs]) -> Outputs:
    return {name: torch.cat([outputs[name] for outputs in chunks]) for name in chunks[0]}


def _pixels(sources: Iterable[bytes | Tensor | Path], preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Yield images as uint8 C x H x W. Encoded images are decoded and transformed; tensors are passed on."""
    for source in sources:
        if isinstance(source, Tensor):
            yield source
        else:
            yield eval_transform(preprocessing)(read_input(source, preprocessing))


def generated_images(preprocessing: Preprocessing) -> Sequence[bytes | Tensor]:
    """Return fixed images of coloured ramps and blobs, as PNG files of twice the network's input size.

    Networks with more than 4 channels, which no image file has, get uint8 tensors of the network's input size.
    """
    from torchvision.transforms.v2.functional import to_pil_image  # deferred: importing torchvision takes seconds

    channels = len(preprocessing.mean)
    if channels not in CARRIERS:
        return _patterns(channels, *preprocessing.size)
    encoded = []
    for pattern_CHW in _patterns(max(channels, 3), *(2 * side for side in preprocessing.size)):
        file = io.BytesIO()
        shown_CHW = pattern_CHW[[0, 2]] if channels == 2 else pattern_CHW
        to_pil_image(shown_CHW).save(file, format="PNG")
        encoded.append(file.getvalue())
    return encoded


def _patterns(channels: int, height: int, width: int) -> list[Tensor]:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    blob = torch.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / 0.02)
    patterns = []
    for colours in ([x, y, 1 - x], [blob, 0.2 * blob, 1 - blob], [1 - y, x * y, blob]):
        further = [(0.37 * index * colours[index % 3] + x * y) % 1 for index in range(3, channels)]
        values_CHW = torch.stack([*colours, *further])
        patterns.append((values_CHW.clamp(0, 1) * 255).round().to(torch.uint8))
    return patterns


def _batches(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield a batch with the first image alone, then larger batches, so that several batch sizes are checked."""
    chunk: list[Tensor] = []
    size = 1
    for image in images:
        chunk.append(image)
        if len(chunk) == size:
            yield torch.stack(chunk)
            chunk, size = [], _CHUNK
    if chunk:
        yield torch.stack(chunk)
