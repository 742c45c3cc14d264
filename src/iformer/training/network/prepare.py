"""A network made ready for its training steps on the device that they run on."""

from __future__ import annotations

import torch
from torch import nn

from iformer.config.recipe import Recipe
from iformer.training.distributed import RankContext
from iformer.training.network.depthwise import train_depthwise_fast
from iformer.training.network.ema import WeightAverage
from iformer.training.network.precision import compiles
from iformer.training.network.sync_norm import synchronise_norms


def prepare_network(
    model: nn.Module, recipe: Recipe, context: RankContext
) -> tuple[nn.Module, WeightAverage | None]:
    """The network on its device, in train mode, and the average of its weights where the recipe wants one.

    What changes is the network itself; the keys of its state, and what it computes, stay the same.
    """
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network: nn.Module = model.to(context.device, memory_format=layout).train()  # type: ignore[call-overload]
    # a plain copy: what follows is for the one that trains
    average = WeightAverage(network, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
    if recipe.sync_batch_norm and context.world_size > 1:
        synchronise_norms(network, context.device)
    train_depthwise_fast(network, context.device, context.precision)
    if compiles(recipe.compile, context.device):
        network.compile()
    return network, average
