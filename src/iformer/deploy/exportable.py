"""Protocol between export and the tasks: the properties of a network that `iformer.deploy` uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from iformer.config.metadata import Metadata

Outputs = dict[str, Tensor]
"""Outputs by name; the first axis of each tensor is the batch."""

Forward = Callable[[Tensor], Outputs]
"""Function from uint8 images, B x C x H x W, to outputs: a network with its normalisation, or an artifact."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Result of a task's comparison of an artifact's outputs with the network's outputs."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures for the record, such as `top1_agreement`."""
    max_error: float = 0.0
    """Largest error among the values that could be matched; only used if `Limits.ordered` is False."""
    failures: tuple[str, ...] = ()
    """One line per disagreement that makes the artifact unusable."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Export restrictions of a network with data-dependent shapes or control flow."""

    runtimes: tuple[str, ...]
    """Names of the runtimes that the network can be exported to."""
    precisions: tuple[str, ...]
    reason: str
    """Why other runtimes are excluded, and what to do instead; printed after "cannot be exported to TITLE: "."""
    batch: int
    """Number of images per call."""
    traced: bool
    """ONNX only: export by tracing, because `torch.export` does not support the network."""
    ordered: bool
    """Whether the outputs of two runtimes can be compared value by value. False: they are compared by `agreement`
    only, because near-ties may swap places."""


class Exportable(Protocol):
    """A network prepared for export by its task (`iformer/tasks/TASK/export.py`), with read-only attributes."""

    @property
    def model(self) -> nn.Module:
        """The network in eval mode, not folded: the reference of the parity check."""

    @property
    def name(self) -> str:
        """Name of the architecture."""

    @property
    def metadata(self) -> Metadata:
        """Task, class names, preprocessing and provenance."""

    @property
    def channels(self) -> int:
        """Number of channels of an input image, C."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs, in the order in which `model` returns them."""

    @property
    def class_logits(self) -> str | None:
        """Name of the output with one logit per class, B x K; None if the task has no such output."""

    @property
    def postprocess(self) -> dict[str, Any] | None:
        """Settings that turn outputs into answers, as plain values for the record; None without postprocessing."""

    @property
    def limits(self) -> Limits | None:
        """Export restrictions. None: every runtime and option is allowed."""

    def folded(self, size: tuple[int, int]) -> nn.Module:
        """Return a folded copy of the network for inputs of `size` (height, width); `model` is unchanged.

        Raises:
            UserError: the network does not support inputs of this size.
        """

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare outputs by what they mean, such as the predicted class.

        Args:
            expected: the network's outputs on all images.
            actual: the artifact's outputs, of the same shapes.
            tolerance: allowed error of a value, as a share of the largest value of the same output.
        """


def named(names: Sequence[str], outputs: Tensor | Sequence[Tensor]) -> Outputs:
    """Return a network's outputs, given as a tensor or a tuple of tensors, as a dict by name."""
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    return dict(zip(names, values, strict=True))
