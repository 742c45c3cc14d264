"""A network whose parameters, gradients and optimizer state are shared out over the processes (FSDP).

Checkpoints hold whole tensors, so that they load on any number of processes, sharded or not.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from iformer.models.backbone import Backbone


class ShardedNetwork:
    """Shards a network in place, block by block, and gives whole copies of it. All processes have to take part."""

    def __init__(self, network: nn.Module) -> None:
        """`network` is on its device, with its starting weights; make the optimizer afterwards."""
        # FSDP cuts along the first dimension and takes no other layout; activations keep theirs
        self.network = network.to(memory_format=torch.contiguous_format)
        self._shell = copy.deepcopy(network).to("meta")
        if isinstance(network, Backbone):
            for stage in network.stages:
                for block in stage.blocks:  # type: ignore[union-attr]
                    fully_shard(block)
        fully_shard(network)

    def whole(self) -> nn.Module:
        """A whole copy of the network as it is now, on the same device, in eval mode."""
        tensors = {name: whole_tensor(tensor) for name, tensor in self.network.state_dict().items()}
        device = next(iter(tensors.values())).device
        network = copy.deepcopy(self._shell).to_empty(device=device)
        network.load_state_dict(tensors)
        return network.eval()


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out; then all processes have to ask."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole.detach()
    return tensor


def shared_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, shared out as a parameter of its shape is."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether every number in every tensor is finite; of shared ones on this process's part."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    norms = torch._foreach_norm([tensor for tensor in local if tensor.numel()])
    return bool(torch.stack(norms).isfinite().all()) if norms else True
