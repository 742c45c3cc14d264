"""Construction of the optimizer, AdamW or Muon, and its state as named tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from iformer.config.recipe import Recipe
from iformer.errors import WeightsError
from iformer.models.backbone import Backbone
from iformer.training.network.fsdp import shard_like, whole_tensor
from iformer.training.network.precision import multiplies_bf16


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the trainable parameters, at the peak learning rate.

    Weight decay does not apply to one-dimensional parameters (biases, norms, layer scales) or to parameters named
    by `model.no_weight_decay()`. With `layer_decay` or `head_lr`, each parameter group has a learning-rate factor
    `lr_scale`, which the schedule applies.

    Muon (https://kellerjordan.github.io/posts/muon) is timm's implementation: it orthogonalises the momentum of
    every weight with two or more dimensions, a convolution as an out x (in * height * width) matrix, and updates
    all other parameters with AdamW. Muon's updates are scaled to the size of AdamW's, so one learning rate suits
    both. It orthogonalises in bf16 where the device multiplies bf16 in hardware, else in fp32.
    """
    groups = _parameter_groups(model, recipe)
    if recipe.optimizer == "muon":
        from timm.optim import Muon  # type: ignore[attr-defined]

        muon: torch.optim.Optimizer = Muon(
            groups, lr=recipe.peak_lr, betas=recipe.betas, adjust_lr_fn="match_rms_adamw", nesterov=True
        )
        if not multiplies_bf16(groups[0]["params"][0].device):
            muon.step = _in_fp32(muon.step)  # type: ignore[method-assign]
        return muon
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _in_fp32(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `step` of timm's Muon with Newton-Schulz iterations in fp32.

    timm computes them in bf16 and has no setting for it. A CPU without bf16 instructions needs 10 to 30 times as
    long for a product in bf16 as in fp32.
    """
    from timm.optim import muon

    in_bf16 = muon.zeropower_via_newtonschulz
    in_fp32 = functools.partial(in_bf16, dtype=torch.float32)

    @functools.wraps(step)
    def wrapped(*arguments: Any, **settings: Any) -> Any:
        muon.zeropower_via_newtonschulz = in_fp32
        try:
            return step(*arguments, **settings)
        finally:
            muon.zeropower_via_newtonschulz = in_bf16

    return wrapped


def base_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the current learning rate of the schedule, without the `lr_scale` factors of the parameter groups."""
    group = optimizer.param_groups[0]
    rate: float = group["lr"] / group.get("lr_scale", 1.0)
    return rate


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if recipe.layer_decay == recipe.head_lr == 1:
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            model, recipe.weight_decay, no_weight_decay_list=exempt
        )
        return groups
    scales = _lr_scales(model, recipe)
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in exempt else recipe.weight_decay
            by_setting.setdefault((scales[name], decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in by_setting.items()
    ]


def _lr_scales(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Return the learning-rate factor of each parameter by name.

    The last block of the backbone has the factor `layer_decay`, the block before it `layer_decay ** 2`, and so on
    down to the stem. Parameters outside the backbone, and its classifier, have the factor `head_lr`.
    """
    from timm.models import group_parameters

    scales = {name: recipe.head_lr for name, _ in model.named_parameters()}
    prefix, backbone = next(
        ((name, module) for name, module in model.named_modules() if isinstance(module, Backbone)), ("", None)
    )
    if backbone is not None:
        layers = group_parameters(backbone, backbone.group_matcher(), reverse=True)
        trunk = {name: layer for name, layer in layers.items() if not name.startswith("head.")}
        last = max(trunk.values()) + 1
        for name, layer in trunk.items():
            scales[f"{prefix}.{name}" if prefix else name] = recipe.layer_decay ** (last - layer)
    return scales


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's moments and step counts as `{"<key>.<parameter name>": tensor}`.

    If the network is sharded, the tensors are gathered and every rank must call this function.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # Muon also stores flags, which it recomputes
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
