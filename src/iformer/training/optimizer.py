"""The optimizer, AdamW or Muon, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from iformer.config.recipe import Recipe
from iformer.errors import WeightsError
from iformer.training.network.fsdp import shard_like, whole_tensor


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the trainable parameters, at the peak learning rate.

    There is no weight decay on parameters of one dimension (biases, norms, layer scales) and on those that
    `model.no_weight_decay()` names.

    Muon (https://kellerjordan.github.io/posts/muon) is timm's: it orthogonalises the momentum of every weight of
    two or more dimensions, a convolution as an out x (in * height * width) matrix, and updates the other
    parameters with AdamW. Its updates have the size of AdamW's, so a learning rate means the same for both.
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
    """Return the optimizer's moments and step counts as `{"<key>.<parameter name>": tensor}`.

    Tensors of a sharded network are gathered; then every rank must call it.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # Muon also keeps flags, which it computes again
                tensors[f"{key}.{name}"] = whole_tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned.

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
        raise WeightsError(f"the optimizer state is of another network: it has {', '.join(unknown[:5])}")
    contents = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    contents["state"] = {
        index: {key: _laid_out_like(parameter, tensor) for key, tensor in by_name[names[parameter]].items()}
        for index, parameter in enumerate(parameters)
        if names[parameter] in by_name
    }
    optimizer.load_state_dict(contents)


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        return shard_like(parameter, tensor)
    # the memory format decides the order of sums, so a resumed run must have the same one
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
