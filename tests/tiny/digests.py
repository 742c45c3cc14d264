"""Two numbers for each tensor of a file: enough to tell whether another has the same values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return for each tensor its number of elements and its dot product with a fixed random vector."""
    return {name: [tensor.numel(), _project(tensor)] for name, tensor in sorted(tensors.items())}


def assert_same(found: Mapping[str, list[float]], expected: Mapping[str, list[float]], *, error: float) -> None:
    """Assert that no element is off by more than about `error`, taking errors of the elements as independent."""
    assert found.keys() == expected.keys()
    different = {
        name: (found[name], values)
        for name, values in expected.items()
        if found[name][0] != values[0] or abs(found[name][1] - values[1]) > 4 * error * max(values[0], 1) ** 0.5
    }
    assert not different


def _project(tensor: Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(tensor.numel(), generator=generator, dtype=torch.float64)
    return round(float(vector @ tensor.detach().double().flatten()), 9)
