"""Training passes from CUDA graphs: when they are used. `benchmarks/gpu.py` compares their results on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iformer.tasks.registry import load_recipe
from iformer.training.distributed import RankContext
from iformer.training.network.graphs import GraphedNetwork, uses_cuda_graphs


def wrapped(network: nn.Module) -> tuple[GraphedNetwork, list[tuple[int, ...]], list[str]]:
    """A wrapped network, the shapes of its graphs, and its warnings; a graph adds 100 to the outputs."""
    shapes: list[tuple[int, ...]] = []
    said: list[str] = []

    def capture(module: nn.Module, images: Tensor) -> Callable[..., Any]:
        shapes.append(tuple(images.shape))
        return lambda x: module(x) + 100

    return GraphedNetwork(network, say=said.append, capture=capture), shapes, said


def test_a_graph_is_made_once_two_batches_have_one_shape() -> None:
    network, shapes, said = wrapped(nn.Identity())
    graphed = [bool(network(torch.zeros(size, 3)).sum()) for size in (4, 4, 4, 2, 4, 2, 2, 4, 4)]
    assert graphed == [False, True, True, False, True, False, True, False, True]
    assert shapes == [(4, 3), (2, 3), (4, 3)]
    assert not said


def test_eval_mode_and_other_inputs_run_as_usual() -> None:
    network, shapes, _ = wrapped(nn.Identity())
    network.module.eval()
    for _ in range(3):
        network(torch.zeros(4))
    network.module.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.zeros(4))
    several, shapes_of_several, _ = wrapped(nn.Bilinear(2, 2, 1))
    for _ in range(3):
        several(torch.zeros(4, 2), torch.zeros(4, 2))
    assert shapes == shapes_of_several == []


def test_a_network_that_cannot_be_captured_trains_without_graphs_and_a_warning_says_so() -> None:
    def capture(module: nn.Module, images: Tensor) -> Callable[..., Any]:
        raise RuntimeError("operation not permitted")

    said: list[str] = []
    network = GraphedNetwork(nn.Identity(), say=said.append, capture=capture)
    for _ in range(4):
        assert torch.equal(network(torch.ones(4)), torch.ones(4))
    assert said == ["warning: training goes on without CUDA graphs, more slowly: operation not permitted"]


@pytest.mark.parametrize(
    ("device", "world_size", "changes", "expected"),
    [
        ("cuda", 1, {"cuda_graphs": True}, True),
        ("cuda", 1, {"cuda_graphs": True, "compile": True}, False),
        ("cuda", 1, {"cuda_graphs": True, "compile": "auto"}, True),
        ("cuda", 1, {}, False),
        ("cuda", 1, {"cuda_graphs": True, "grad_accum": 2}, False),
        ("cuda", 2, {"cuda_graphs": True}, False),
        ("cpu", 1, {"cuda_graphs": True}, False),
    ],
)
def test_runs_that_use_graphs(device: str, world_size: int, changes: dict[str, Any], expected: bool) -> None:
    recipe = replace(load_recipe("finetune"), **changes)
    context = RankContext(device=torch.device(device), precision="bf16", world_size=world_size)
    assert uses_cuda_graphs(recipe, context) is expected
