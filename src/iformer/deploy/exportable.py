"""The protocol between export and the tasks: what `iformer.deploy` needs to know about a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from iformer.config.metadata import Metadata

Outputs = dict[str, Tensor]
"""Outputs by name, batch first."""

Forward = Callable[[Tensor], Outputs]
"""uint8 images, B x C x H x W, to outputs: a network behind its normalisation, or an artifact."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A task's comparison of an artifact's outputs with the network's."""

    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures for the record, such as `top1_agreement`."""
    max_error: float = 0.0
    """Largest error of a value that has a counterpart, where `Limits.ordered` is False."""
    failures: tuple[str, ...] = ()
    """One line for each disagreement that makes the artifact unusable."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Export restrictions of networks with data-dependent shapes or control flow."""

    runtimes: tuple[str, ...]
    """Names of the runtimes that take it."""
    precisions: tuple[str, ...]
    reason: str
    """Why the other runtimes do not, and what to do; follows "cannot be exported to TITLE: "."""
    batch: int
    """Images in each call."""
    traced: bool
    """ONNX: `torch.export` does not take it, tracing does."""
    ordered: bool
    """Whether the outputs of two runtimes can be compared value by value. False: only by `agreement`, because
    near-ties may swap places."""


class Exportable(Protocol):
    """A network and what its task says about it. `iformer/tasks/TASK/export.py` implements it.

    The attributes are read only.
    """

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
        """Channels of an image."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs, in the order in which `model` returns them."""

    @property
    def class_logits(self) -> str | None:
        """The output of shape B x K with one logit per class; None if the task has none."""

    @property
    def postprocess(self) -> dict[str, Any] | None:
        """How the outputs become an answer, as plain values for the record; None if the outputs are the answer."""

    @property
    def limits(self) -> Limits | None:
        """Restrictions of the export; None: every runtime and option."""

    def folded(self, size: tuple[int, int]) -> nn.Module:
        """Return a folded copy of the network for inputs of a height and width; `model` stays as it is.

        Raises:
            UserError: the network does not take inputs of this size.
        """

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare outputs by what they mean, such as the predicted class.

        Args:
            expected: the network's outputs on all images.
            actual: the artifact's outputs, of the same shapes.
            tolerance: allowed error of a value, as a share of the largest value of its output.
        """


def named(names: Sequence[str], outputs: Tensor | Sequence[Tensor]) -> Outputs:
    """Return a network's output, a tensor or a tuple of tensors, by name."""
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    return dict(zip(names, values, strict=True))
