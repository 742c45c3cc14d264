"""Register the networks with timm on import.

The registered names are `package_` followed by a name of `iformer.list_models`, because timm has its own networks
named `iformer_m`. Every library that builds networks with `timm.create_model` can use them, with the options of
`iformer.create_model`, such as `attention="chunk_hybrid"`:

    timm.create_model("package_iformer_m", features_only=True, attention="chunk_hybrid")
    segmentation_models_pytorch.Unet("tu-package_iformer_m", encoder_weights=None)
    transformers.TimmBackboneConfig(backbone="package_iformer_m")
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model

from iformer.config.variants import list_models, release
from iformer.errors import UserError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model

PREFIX = "package_"
"""Prefix of the names registered with timm."""
TAG = "in1k"
"""timm's tag for the released weights."""


def build_for_timm(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    global_pool: Any = None,
    output_stride: int = 32,
    drop_rate: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    **options: Any,
) -> Backbone:
    """Build a network with the arguments of `timm.create_model`.

    As with timm's networks, released weights are adapted to `num_classes` (a new head) and `in_chans`.

    Args:
        name: a name of `iformer.list_models`.
        pretrained: use the released weights.
        num_classes: number of classes. None: that of the checkpoint in the option `weights`, if given, else 1000.
        global_pool: "avg", or "" if `num_classes` is 0.
        output_stride: 32; no other value is supported.
        drop_rate: 0; the head has no dropout.
        pretrained_cfg: not used; the settings come from the weights.
        pretrained_cfg_overlay: not used.
        cache_dir: not used; weights are cached by huggingface_hub.
        options: options of `iformer.create_model`.

    Raises:
        UserError: an option does not exist, or has a value that the networks do not support.
    """
    for option, value, only in (("output_stride", output_stride, 32), ("drop_rate", drop_rate, 0)):
        if value != only:
            raise UserError(f"{option} is {value!r}; iFormer networks have {option}={only}")
    if pretrained:
        options.setdefault("adapt_in_chans", True)
        options.setdefault("reset_head", num_classes not in (None, 1000))
    model = create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    if global_pool is not None and isinstance(model, Classifier):
        model.set_global_pool(global_pool)
    return model


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **options: Any) -> Backbone:
        return build_for_timm(name, pretrained=pretrained, **options)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + name
    entrypoint.__doc__ = f"Build {name} of the iformer package; see `build_for_timm`."
    register_model(entrypoint)


default_cfgs = generate_default_cfgs(
    {
        PREFIX + name + (f".{TAG}" if (found := release(name)) is not None else ""): (
            {} if found is None else {"hf_hub_id": found.hub_repo}
        )
        for name in list_models()
    }
)
"""Default settings of the registered networks; timm looks for a module attribute of this name."""

for _name in list_models():
    _register(_name)
