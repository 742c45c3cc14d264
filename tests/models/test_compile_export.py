"""`torch.compile` and `torch.export`, of both forms, with a batch that changes."""

from __future__ import annotations

import pytest
import torch

from iformer.models.factory import build
from iformer.models.folding import fold
from tiny.networks import randomize, tiny_config


@pytest.fixture(params=[False, True], ids=["trainable", "folded"])
def network(request):
    model = build(tiny_config())
    randomize(model)
    model.eval()
    return fold(model) if request.param else model


def test_export_with_dynamic_batch(network) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},), strict=False
    )
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 64, 64)
        torch.testing.assert_close(exported.module()(x), network(x), atol=1e-5, rtol=1e-5)


def test_every_ablation_exports(make_ablated_config) -> None:
    """The folded form, which is what leaves for other runtimes."""
    model = build(make_ablated_config())
    randomize(model)
    folded = fold(model.eval())
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(folded, (example,), dynamic_shapes=({0: batch},), strict=False)
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(exported.module()(x), folded(x), atol=1e-5, rtol=1e-5)


def test_compiles_once_for_every_batch(network) -> None:
    """Without graph breaks; the eager backend keeps the tracing and leaves the C++ compiler out."""
    compiled = torch.compile(network, dynamic=True, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in (2, 3, 5):
            x = torch.randn(size, 3, 64, 64)
            torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=1e-5)


def test_traces(network) -> None:
    """Core ML and pnnx start from a TorchScript trace."""
    traced = torch.jit.trace(network, torch.randn(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(traced(x), network(x), atol=1e-5, rtol=1e-5)
    assert "mkldnn_convolution" not in str(traced.inlined_graph)
