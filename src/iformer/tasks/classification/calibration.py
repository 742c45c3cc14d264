"""Calibrated probabilities: the expected calibration error, and temperature scaling.

Sources: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599).

Shape letters: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from iformer.layers.heads import Head
from iformer.models.classifier import Classifier

BINS = 15
"""Number of bins of equal width for the expected calibration error, as in the paper."""


@dataclass(frozen=True)
class Reliability:
    """Numbers of answers and of right answers by probability, in `BINS` bins of equal width."""

    images: npt.NDArray[np.int64]
    """Number of images in each bin."""
    confidence: npt.NDArray[np.float64]
    """Sum of the probabilities of the answers in each bin."""
    right: npt.NDArray[np.int64]
    """Number of right answers in each bin."""

    @property
    def error(self) -> float:
        """The expected calibration error in percent.

        It is the mean of |accuracy - confidence| over the bins, weighted by their numbers of images.
        """
        return float(100 * np.abs(self.right - self.confidence).sum() / max(1, self.images.sum()))


def reliability(confidences: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> Reliability:
    """Count answers and right answers by probability.

    Args:
        confidences: probabilities of the answers, (N,). NaN counts as 0.
        right: whether each answer is right, (N,).
    """
    confidences = np.nan_to_num(confidences)
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return Reliability(
        images=np.bincount(bins, minlength=BINS),
        confidence=np.bincount(bins, weights=confidences, minlength=BINS).astype(np.float64),
        right=np.bincount(bins[right], minlength=BINS),
    )


def calibration_error(confidences: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error in percent; for the arguments see `reliability`."""
    return reliability(confidences, right).error


def fit_temperature(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Return the temperature T, 0.05 to 20, with the smallest cross entropy of softmax(logits / T).

    Args:
        probabilities: softmax of the logits, N x K.
        labels: true classes, (N,).
    """
    logits_NK = torch.from_numpy(probabilities).double().clamp(min=1e-30).log()
    labels_N = torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits_NK / np.exp(log_temperature), labels_N))

    # the loss is convex in 1/T, so it has one minimum: golden-section search in log T
    low, high, ratio = float(np.log(0.05)), float(np.log(20)), (5**0.5 - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


@torch.no_grad()
def scale_logits(network: nn.Module, temperature: float) -> None:
    """Divide a classifier's logits by a temperature: weights and biases of the head are divided in place."""
    assert isinstance(network, Classifier)
    assert isinstance(network.head, Head)
    for branch in (network.head.classifier, network.head.distilled):
        if branch is not None:
            branch.linear.weight.div_(temperature)
            branch.linear.bias.div_(temperature)
