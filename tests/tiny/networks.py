"""Networks small enough to train in milliseconds, with every kind of block."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from iformer.config.metadata import Metadata
from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import VARIANTS, Variant
from iformer.models.classifier import Classifier

CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk")


def tiny_config(**options: object) -> NetworkConfig:
    """A network with every kind of block that trains in milliseconds."""
    attention = AttentionConfig(reduction=2, ffn_expansion_ratio=2)
    stages = (
        StageConfig(channels=8, pattern=(("conv", 1),), conv_expansion_ratio=2),
        StageConfig(channels=16, pattern=(("conv", 1),), conv_expansion_ratio=2),
        StageConfig(
            channels=24,
            pattern=(("conv", 1), ("attention", 2), ("conv", 1)),
            conv_expansion_ratio=2,
            attention=attention,
        ),
        StageConfig(channels=32, pattern=(("attention", 1),), attention=attention),
    )
    fields: dict[str, object] = {"name": "tiny", "stages": stages, "num_classes": 5}
    return NetworkConfig(**(fields | options))  # type: ignore[arg-type]


def tiny_variant() -> Variant:
    """Return a row for `VARIANTS`: iFormer-T, small enough to train in seconds."""
    blocks = ((1, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0))
    row = replace(VARIANTS["iformer_t"], channels=(8, 16, 24, 32), blocks=blocks)
    return replace(row, parameters=None, macs=None)


ABLATIONS: dict[str, dict[str, dict[str, object]]] = {
    "released": {},
    "equation 3": {"attention": {"modulation": "output"}},
    "silu": {"attention": {"activation": "silu"}},
    "pre-LN": {"attention": {"norm_placement": "pre_ln"}},
    "SHA": {"attention": {"operator": "sha"}},
    "MHA": {"attention": {"operator": "mha", "head_dim": 4}},
    "SHViT, all channels": {"attention": {"operator": "shvit"}},
    "SHViT": {"attention": {"operator": "shvit", "channel_share": 0.25}},
    "SHViT, concat": {"attention": {"operator": "shvit", "channel_share": 0.25, "concat": True}},
    "no position encoding": {"attention": {"position_encoding": False}},
    "expanded depthwise": {"stage": {"expanded_kernel_size": 5}},
    "3x3 stem": {"network": {"stem_kernel_size": 3}},
    "patches": {"network": {"stem": "patch", "downsample": "patch"}},
    "conv only": {"stage": {"pattern": (("conv", 2),)}},
    "layer norm": {"stage": {"pattern": (("conv", 2),)}, "network": {"norm": "layer"}},
    "ConvNeXt": {
        "stage": {"pattern": (("conv", 2),)},
        "network": {"norm": "layer", "stem": "patch", "downsample": "patch"},
    },
}
"""Every option of the paper's ablations: what it changes in `tiny_config`."""


def ablated_config(name: str, **options: object) -> NetworkConfig:
    """The tiny network with one of `ABLATIONS`."""
    change = ABLATIONS[name]
    config = tiny_config(**options)
    stages = tuple(
        replace(
            stage, attention=replace(stage.attention, **change.get("attention", {})), **change.get("stage", {})
        )
        for stage in config.stages
    )
    return config.with_options(name=name, stages=stages, **change.get("network", {}))


def randomize_statistics(model: nn.Module) -> None:
    """Weights and statistics as far from their initial values as those of a trained network.

    At initialisation every residual branch is so small that most mistakes in it would stay unseen.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.6 * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.1, 0.5)


def randomize(model: nn.Module) -> None:
    """Call `randomize_statistics` with seed 0."""
    torch.manual_seed(0)
    randomize_statistics(model)


def labelled_classifier() -> Classifier:
    """Return the tiny classifier with class names and a 64 x 64 input, in eval mode; always the same weights."""
    torch.manual_seed(0)
    network = Classifier(tiny_config())
    randomize(network)
    network.metadata = Metadata(class_names=CLASS_NAMES, preprocessing=Preprocessing(size=(64, 64)))
    return network.eval()
