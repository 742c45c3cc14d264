"""Preparation of a network for training on its device."""

from __future__ import annotations

import torch
from torch import nn

from iformer.config.recipe import Recipe
from iformer.training.distributed import RankContext
from iformer.training.network.batch_norm import train_norms_fast
from iformer.training.network.depthwise import train_depthwise_fast
from iformer.training.network.ema import ModelEma
from iformer.training.network.graphs import uses_cuda_graphs
from iformer.training.network.precision import compiles
from iformer.training.network.sync_norm import synchronise_norms


def prepare_network(model: nn.Module, recipe: Recipe, context: RankContext) -> tuple[nn.Module, ModelEma | None]:
    """Move a network to its device in train mode and apply the recipe's kernels, norms and compilation.

    `model` is changed in place. Its state dict keys and its outputs in eval mode stay the same.

    Returns:
        The network, and the EMA of its weights if the recipe has one.
    """
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network: nn.Module = model.to(context.device, memory_format=layout).train()  # type: ignore[call-overload]
    # the EMA copies the network before the changes below, which are for training only
    ema = ModelEma(network, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
    if recipe.sync_batch_norm and context.world_size > 1:
        synchronise_norms(network, context.device)
    train_depthwise_fast(network, context.device, context.precision)
    if uses_cuda_graphs(recipe, context):
        train_norms_fast(network, context.device)  # launching their kernels takes long; graphs hide that
    elif compiles(recipe.compile, context.device):
        network.compile()
    return network, ema
