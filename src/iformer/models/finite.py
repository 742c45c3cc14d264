"""Checks that the outputs of a network for an image are finite.

Prediction uses them. Evaluation during training does not: one odd validation image must not end a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from iformer.errors import DataError

NOT_FINITE = "the network's outputs overflow on this image; a fp32 export or other weights may help"
"""Message if outputs are NaN or infinite."""


def check_finite(*outputs: Tensor) -> None:
    """Check the outputs of a network for an image.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise DataError(NOT_FINITE)


@contextmanager
def finite_outputs(*layers: nn.Module) -> Iterator[None]:
    """Check each output of `layers` while the block runs. Each layer must return one tensor.

    Raises:
        DataError: a value is NaN or infinite.
    """
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda _layer, _inputs, output: check_finite(output)))
        yield
