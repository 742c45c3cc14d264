"""AdamW or Muon without weight decay on norms, biases and layer scales, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from iformer.config.recipe import Recipe
from iformer.errors import WeightsError
from iformer.training.network.fsdp import shared_as, whole_tensor


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that need a gradient, at the recipe's peak learning rate.

    Parameters of one dimension (biases, norms, layer scales) and those that the network names in
    `no_weight_decay()` are not decayed.

    Muon (https://kellerjordan.github.io/posts/muon, timm's, which takes a convolution as a matrix of
    out x in*height*width) orthogonalises the momentum of every weight of two dimensions or more; it is scaled
    to AdamW's step, so that one learning rate means the same in both. The rest of the parameters is AdamW's.
    """
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=exempt)
    if recipe.optimizer == "muon":
        from timm.optim import Muon  # type: ignore[attr-defined]

        muon: torch.optim.Optimizer = Muon(
            groups, lr=recipe.peak_lr, betas=recipe.betas, adjust_lr_fn="match_rms_adamw", nesterov=True
        )
        return muon
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `{"<key>.<parameter name>": tensor}`: moments and step counts.

    Of a sharded network all processes have to ask; each gets whole tensors.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # Muon keeps its choice by shape beside them, and makes it again
                tensors[f"{key}.{name}"] = whole_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took from another one.

    Raises:
        WeightsError: a tensor belongs to no parameter.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        by_name.setdefault(name, {})[key] = tensor
    unknown = sorted(set(by_name) - set(names.values()))
    if unknown:
        raise WeightsError(f"the optimizer's state is of another network: it has {', '.join(unknown[:5])}")
    plain = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plain["state"] = {
        index: {key: _laid_out_as(parameter, tensor) for key, tensor in by_name[names[parameter]].items()}
        for index, parameter in enumerate(parameters)
        if names[parameter] in by_name
    }
    optimizer.load_state_dict(plain)


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        return shared_as(parameter, tensor)
    # The order in memory decides the order of sums, so a resumed run needs the undisturbed run's.
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
