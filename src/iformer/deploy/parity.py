"""Is an artifact the network? Both see the same encoded images; every logit is compared.

The network's answer comes through the package's own decoder, transform and normalisation, the artifact's
through the same decoder and transform and whatever the artifact does itself. Shape letters: N images, K
classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from iformer.config.checking import to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import Runner, weights_hash
from iformer.errors import UserError
from iformer.models.classifier import Classifier

FP32_TOLERANCE = 1e-3
"""Largest logit error of a single-precision artifact, as a share of the largest logit."""
FP16_TOLERANCE = 2e-2
"""The same of an artifact whose weights or arithmetic have half precision."""

_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an artifact is from the network it was made from."""

    images: int
    """How many images were compared, the generated ones included."""
    generated_images: int
    """How many of them are colour patterns rather than photographs."""
    max_abs_error: float
    """Largest difference of two logits."""
    max_relative_error: float
    """The same as a share of the network's largest absolute logit."""
    min_cosine: float
    """Smallest cosine between an image's two logit vectors, each less its mean."""
    top1_agreement: float
    """Share of images (0 to 1) with the same first class, of those whose margin is clear."""
    clear_images: int
    """Images whose first two logits differ by more than the tolerance could turn."""
    tolerance: float | None
    """None: a quantized artifact, which is judged by its metric."""
    problems: tuple[str, ...] = ()
    """What is wrong, one line each; empty where the artifact is the network."""

    def require(self, artifact: Path) -> None:
        """Raise `UserError` unless the artifact agrees with the network."""
        if self.problems:
            raise UserError(f"{artifact.name} does not agree with the network: {'; '.join(self.problems)}")

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return to_plain(self)


def compare(
    model: Classifier,
    runner: Runner,
    images: Sequence[Path] = (),
    *,
    tolerance: float | None = FP32_TOLERANCE,
) -> Parity:
    """Compare an artifact, loaded in its own runtime, with its network.

    Args:
        model: the network in eval mode, not folded (folding is part of what is checked).
        runner: the artifact.
        images: encoded image files. Generated colour patterns are always added: photographs without colour
            would not show red and blue exchanged.
        tolerance: largest logit error as a share of the largest logit; None: the error is told but is no
            problem.

    Raises:
        DataError: an image file cannot be read.
    """
    info = runner.info
    problems = _record_problems(model, runner)
    generated = _colour_patterns(info.preprocessing)
    decode = eval_transform(info.preprocessing)
    device = next(model.parameters()).device
    # the network's own mean and std: an artifact made with others has to be found out
    normalize = Normalize(model.metadata.preprocessing).to(device)
    expected, actual = [], []
    sources: list[bytes | Path] = [*generated, *images]
    for pixels_B3HW in _batches(decode(read_image(source)) for source in sources):
        with torch.inference_mode():
            expected.append(model(normalize(pixels_B3HW.to(device))).float().cpu())
        actual.append(runner(pixels_B3HW).float().cpu())
    expected_NK, actual_NK = torch.cat(expected), torch.cat(actual)
    if expected_NK.shape != actual_NK.shape:
        raise UserError(
            f"{info.file} gives {actual_NK.shape[1]} outputs an image; the network has {expected_NK.shape[1]}"
        )
    error = (expected_NK - actual_NK).abs().max().item()
    largest = expected_NK.abs().max().clamp_min(torch.finfo(torch.float32).tiny).item()
    cosine = F.cosine_similarity(_centred(expected_NK), _centred(actual_NK), dim=1).min().item()
    margin = 2 * (tolerance or FP16_TOLERANCE) * largest
    agreement, clear = _top1_agreement(expected_NK, actual_NK, margin=margin)
    if tolerance is not None and not error <= tolerance * largest:  # also where the error is not a number
        problems.append(f"logits differ by {error / largest:.2g} of the largest logit, {tolerance:g} is allowed")
    if tolerance is not None and agreement < 1.0:
        problems.append(f"the first class agrees on {agreement:.1%} of {clear} clear images")
    return Parity(
        images=len(expected_NK),
        generated_images=len(generated),
        max_abs_error=error,
        max_relative_error=error / largest,
        min_cosine=cosine,
        top1_agreement=agreement,
        clear_images=clear,
        tolerance=tolerance,
        problems=tuple(problems),
    )


def _record_problems(model: Classifier, runner: Runner) -> list[str]:
    info, metadata = runner.info, model.metadata
    problems = []
    if info.class_names != metadata.class_names:
        problems.append("its class names are not the network's")
    if (info.preprocessing.mean, info.preprocessing.std) != (
        metadata.preprocessing.mean,
        metadata.preprocessing.std,
    ):
        problems.append("its mean and std are not the network's")
    if info.weights_sha256 != weights_hash(model):
        problems.append("it was made from other weights")
    return problems


def _colour_patterns(preprocessing: Preprocessing) -> list[bytes]:
    """PNG files of coloured ramps and blobs, twice the network's size, always the same."""
    height, width = (2 * side for side in preprocessing.size)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    blob = torch.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / 0.02)
    channels = [
        torch.stack([x, y, 1 - x]),
        torch.stack([blob, 0.2 * blob, 1 - blob]),
        torch.stack([1 - y, x * y, blob]),
    ]
    encoded = []
    for values in channels:
        file = io.BytesIO()
        array = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(file, format="PNG")
        encoded.append(file.getvalue())
    return encoded


def _batches(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first image alone, then chunks: an artifact with a free batch is tried with several."""
    chunk: list[Tensor] = []
    size = 1
    for image in images:
        chunk.append(image)
        if len(chunk) == size:
            yield torch.stack(chunk)
            chunk, size = [], _CHUNK
    if chunk:
        yield torch.stack(chunk)


def _centred(logits_NK: Tensor) -> Tensor:
    return logits_NK - logits_NK.mean(dim=1, keepdim=True)


def _top1_agreement(expected_NK: Tensor, actual_NK: Tensor, *, margin: float) -> tuple[float, int]:
    if expected_NK.shape[1] < 2:
        return 1.0, 0
    first_two = expected_NK.topk(2, dim=1).values
    clear = (first_two[:, 0] - first_two[:, 1]) > margin
    agree = expected_NK.argmax(1) == actual_NK.argmax(1)
    count = int(clear.sum())
    return (float(agree[clear].float().mean()) if count else 1.0), count
