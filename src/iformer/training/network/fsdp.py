"""Sharding of parameters, gradients and optimizer state over the ranks (FSDP).

Checkpoints hold whole tensors, so they load on any number of ranks, sharded or not.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from iformer.models.backbone import Backbone


class ShardedNetwork:
    """A network sharded in place, block by block, that can be gathered as a whole. Every rank must take part."""

    def __init__(self, network: nn.Module) -> None:
        """Shard `network`, which must be on its device already. The optimizer must be built afterwards."""
        # FSDP splits the first dimension of contiguous parameters; activations keep their memory format
        self.network = network.to(memory_format=torch.contiguous_format)
        self._shell = copy.deepcopy(network).to("meta")
        backbone = next((module for module in network.modules() if isinstance(module, Backbone)), None)
        for stage in [] if backbone is None else backbone.stages:
            for block in stage.blocks:  # type: ignore[union-attr]
                fully_shard(block)
        fully_shard(network)

    def gather(self) -> nn.Module:
        """Return a whole copy of the network with its current weights, on the same device, in eval mode."""
        tensors = {name: whole_tensor(tensor) for name, tensor in self.network.state_dict().items()}
        device = next(iter(tensors.values())).device
        network = copy.deepcopy(self._shell).to_empty(device=device)
        network.load_state_dict(tensors)
        return network.eval()


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor unsharded. If the tensor is sharded, every rank must call this function."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole.detach()
    return tensor


def shard_like(reference: Tensor | None, tensor: Tensor) -> Tensor:
    """Return a whole tensor sharded like `reference`; unchanged if `reference` is whole or has another shape."""
    if isinstance(reference, DTensor) and tensor.shape == reference.shape:
        return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
    return tensor


def is_finite(tensors: list[Tensor]) -> bool:
    """Return whether all values of the tensors are finite. For sharded tensors, only this rank's values count."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    norms = torch._foreach_norm([tensor for tensor in local if tensor.numel()])
    return bool(torch.stack(norms).isfinite().all()) if norms else True
