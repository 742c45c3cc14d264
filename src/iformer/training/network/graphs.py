"""Training passes from CUDA graphs.

A small network has many short kernels, and the CPU cannot launch them as fast as a large GPU runs them. A CUDA
graph launches all kernels of a pass at once; the kernels, and so the results, stay the same
(`docs/benchmarks/gpu.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from iformer.config.recipe import Recipe
from iformer.errors import one_line
from iformer.training.distributed import RankContext


def uses_cuda_graphs(recipe: Recipe, context: RankContext) -> bool:
    """Return whether a run takes its training passes from CUDA graphs.

    Detectors and segmenters do not. Several processes exchange gradients during the backward pass, and the
    gradients of several passes a step would be added up in memory that the next pass writes to; neither works
    with graphs.
    """
    return (
        context.device.type == "cuda"
        and recipe.cuda_graphs
        and recipe.task == "classify"
        and context.world_size == 1
        and recipe.grad_accum == 1
        and recipe.compile is not True
    )


def with_cuda_graphs(
    network: nn.Module, recipe: Recipe, context: RankContext, *, say: Callable[[str], None]
) -> nn.Module:
    """Return the network that a training step calls: a `GraphedNetwork` if the run uses graphs, else `network`."""
    return GraphedNetwork(network, say=say) if uses_cuda_graphs(recipe, context) else network


_CAPTURE_MODE: dict[str, Any] = (
    {"capture_error_mode": "thread_local"}
    if "capture_error_mode" in signature(torch.cuda.make_graphed_callables).parameters
    else {}
)
"""Newer versions of torch let other threads call CUDA while a graph is captured."""


class GraphedNetwork(nn.Module):
    """A network whose forward and backward passes in training mode come from CUDA graphs.

    The graphs are made for one shape of the images, once two batches in a row have it. Batches of other shapes,
    eval mode and inputs other than one tensor run as usual. If the network cannot be captured, a warning says so
    and training goes on without graphs.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        say: Callable[[str], None],
        capture: Callable[[nn.Module, Tensor], Callable[..., Any]] | None = None,
    ) -> None:
        """Wrap `module`.

        Args:
            module: the network.
            say: shows the warning to the user.
            capture: makes the graphs of a network for images like those given. None: `capture_passes`.
        """
        super().__init__()
        self.module = module
        self._say = say
        self._capture = capture_passes if capture is None else capture
        self._graphed: Callable[..., Any] | None = None
        self._shape: torch.Size | None = None
        self._last: torch.Size | None = None
        self._works = True

    def forward(self, *inputs: Any) -> Any:
        images = inputs[0]
        trains = self.module.training and torch.is_grad_enabled()
        if not (self._works and trains and len(inputs) == 1 and isinstance(images, Tensor)):
            return self.module(*inputs)
        if images.shape != self._shape and images.shape == self._last:
            self._graph(images)
        self._last = images.shape
        if self._graphed is None or images.shape != self._shape:
            return self.module(images)
        return self._graphed(images)

    def _graph(self, images: Tensor) -> None:
        self._graphed = self._shape = None
        try:
            self._graphed = self._capture(self.module, images)
            self._shape = images.shape
        except (RuntimeError, TypeError) as error:
            self._works = False
            self._say(f"warning: training goes on without CUDA graphs, more slowly: {one_line(error)}")


class _Passes(nn.Module):
    """The network as a module of its own: `make_graphed_callables` replaces the `forward` of what it captures."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module(images)


def capture_passes(module: nn.Module, images: Tensor) -> Callable[..., Any]:
    """Capture the forward and the backward pass of a network in training mode.

    Capturing runs the network a few times. The buffers, which are the statistics of batch norms, and the state of
    the random generator are restored.

    Args:
        module: the network. It returns tensors, in tuples or lists if it likes.
        images: images on the GPU, not changed.

    Raises:
        RuntimeError: the network does something that a graph cannot hold, or memory is lacking.
    """
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    random_state = torch.cuda.get_rng_state(images.device)
    # the passes of the warm-up run on another stream than those before; the graphs themselves are not affected
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        with _autocast_without_cache():
            graphed: Callable[..., Any] = torch.cuda.make_graphed_callables(
                _Passes(module), (images.clone(),), allow_unused_input=True, **_CAPTURE_MODE
            )
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        torch.cuda.set_rng_state(random_state, images.device)
    return graphed


def _autocast_without_cache() -> AbstractContextManager[Any]:
    """Return the autocast context of this moment without its cache of weights, which a graph cannot use."""
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False)
