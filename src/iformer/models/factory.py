"""Networks by name, config or checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.variants import DISTILLED_SUFFIX, VARIANTS, list_models, network_config
from iformer.config.windows import WINDOW_OPTIONS, with_design
from iformer.errors import ConfigError, UserError, WeightsError
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.weights import convert
from iformer.models.weights.checkpoint import Weights, load_strict, without_classes, without_head

_INPUT_KEY = "stem.conv1.conv.weight"
_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_NETWORK_OPTIONS = ("layer_scale_init", "stages", "stem", "stem_kernel_size", "downsample", "norm")
_STAGE_OPTIONS = ("conv_kernel_size", "conv_expansion_ratio", "expanded_kernel_size")
_ATTENTION_OPTIONS = tuple(field.name for field in fields(AttentionConfig))
_WINDOW_OPTIONS = ("windowed_stages", *WINDOW_OPTIONS)


def build(
    config: NetworkConfig, *, features_only: bool = False, out_indices: Sequence[int] = (0, 1, 2, 3)
) -> Backbone:
    """A randomly initialised network of a config: a `Classifier`, or with `features_only` a `Backbone`.

    Raises:
        UserError: `out_indices` names a stage that does not exist, or is empty.
    """
    if features_only:
        stages = len(config.stages)
        if not out_indices or any(not -stages <= index < stages for index in out_indices):
            raise UserError(f"out_indices is {tuple(out_indices)}; expected some of 0 to {stages - 1}")
        return Backbone(config, out_indices=[index % stages for index in out_indices])
    return Classifier(config)


def create_model(
    name: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    distillation: bool | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    reset_head: bool = False,
    adapt_in_chans: bool = False,
    attention: str | None = None,
    windows: str | None = None,
    **options: Any,
) -> Backbone:
    """A network by name, in training mode, with random, local or released weights.

    Weights are loaded strictly. Three exceptions, each asked for: `features_only` and `num_classes=0` leave
    the weights' head out, `reset_head` replaces it, `adapt_in_chans` changes the first convolution.

    Args:
        name: a name of `list_models`, or the path of a weight file, which then says what the network is.
        num_classes: None takes those of the weights, or 1000; 0 for no head (pooled features).
        in_chans: channels of the input; None takes those of the weights, or 3.
        distillation: two classifiers; None as `name` says.
        drop_path_rate: stochastic depth of the deepest residual.
        pretrained: use the released ImageNet-1k weights, downloaded once to huggingface_hub's cache.
        weights: a local file to use: one of our checkpoints, timm's or the authors'.
        revision: with `pretrained`, the commit, tag or branch of the hub repository.
        features_only: a `Backbone` that returns the feature maps of `out_indices`.
        out_indices: which of the four stages' maps, with `features_only`.
        reset_head: give the network a new, randomly initialised head where the weights have another (or
            the same): to fine-tune on other classes.
        adapt_in_chans: with weights for 3 channels and another `in_chans`, sum (1 channel) or repeat the
            first convolution's weights as timm does.
        attention: the design for large images: "shma" (no windows), "hybrid" or "chunk_hybrid"; None as the
            weights say. The same weights fit all three.
        windows: the settings of the windows, "released" or "paper" (see `iformer.config.windows.with_design`).
        options: fields of `WindowConfig` and `windowed_stages`, in the place of the settings'; further fields
            of `NetworkConfig` (`layer_scale_init`, `stages`, `stem`, ...), or of `StageConfig` and
            `AttentionConfig` (`modulation`, `conv_kernel_size`, ...) for every stage.

    Raises:
        UnknownNameError: no such network; the message suggests the nearest names.
        ConfigError: an option is unknown or invalid; the message names it.
        WeightsError: the weights cannot be fetched or read, or do not fit the network.
    """
    _check_combination(pretrained=pretrained, weights=weights, revision=revision)
    of_windows = {key: options.pop(key) for key in _WINDOW_OPTIONS if key in options}
    if attention is None and (windows is not None or of_windows):
        given = [*(["windows"] if windows is not None else []), *of_windows]
        raise ConfigError(f"{', '.join(given)} given without attention; pass attention='chunk_hybrid' or 'hybrid'")
    if _is_checkpoint(name):
        if pretrained or weights is not None:
            raise UserError(f"{os.fspath(name)} is a weight file already; leave out pretrained and weights")
        if options:
            raise ConfigError(
                f"{os.fspath(name)} says what its network is; leave out {', '.join(sorted(options))}"
            )
        loaded = convert.read_weights(name)
        config = loaded.config
    else:
        config = _with_options(network_config(os.fspath(name)), options)
        loaded = None
        if pretrained:
            loaded = _read_released(os.fspath(name), revision)
        elif weights is not None:
            loaded = convert.read_weights(weights)
    if attention is not None:
        config = with_design(config, attention, preset=windows, **of_windows)
    if distillation is not None:
        config = _named(config.with_options(distillation=distillation))
    if loaded is None:
        config = config.with_options(
            in_chans=3 if in_chans is None else in_chans,
            num_classes=1000 if num_classes is None else num_classes,
            drop_path_rate=drop_path_rate,
        )
        return build(config, features_only=features_only, out_indices=out_indices)
    config = config.with_options(
        in_chans=loaded.config.in_chans if in_chans is None else in_chans,
        num_classes=loaded.config.num_classes if num_classes is None else num_classes,
        drop_path_rate=drop_path_rate,
    )
    if features_only:
        config = config.with_options(num_classes=0)
    loaded = _with_in_chans(loaded, config, adapt=adapt_in_chans)
    return _with_weights(
        config, loaded, features_only=features_only, out_indices=out_indices, reset_head=reset_head
    )


def _check_combination(*, pretrained: bool, weights: str | os.PathLike[str] | None, revision: str | None) -> None:
    if pretrained and weights is not None:
        raise UserError("pretrained=True and weights were both given; give one of them")
    if revision is not None and not pretrained:
        raise UserError(f"revision is {revision!r}, which is for pretrained=True only")


def _is_checkpoint(name: str | os.PathLike[str]) -> bool:
    if not isinstance(name, str):
        return True
    if name in list_models():
        return False
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return name.endswith(_CHECKPOINT_SUFFIXES) or any(s in name for s in separators) or Path(name).is_file()


def _with_options(config: NetworkConfig, options: dict[str, Any]) -> NetworkConfig:
    """`config` with options of the network, and of every stage and its attention, changed."""
    known = (*_NETWORK_OPTIONS, *_STAGE_OPTIONS, *_ATTENTION_OPTIONS, *_WINDOW_OPTIONS)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"create_model has no option {', '.join(unknown)}; its further options are {', '.join(known)}"
        )
    config = config.with_options(**{key: options[key] for key in _NETWORK_OPTIONS if key in options})
    of_stage = {key: options[key] for key in _STAGE_OPTIONS if key in options}
    of_attention = {key: options[key] for key in _ATTENTION_OPTIONS if key in options}

    def changed(stage: StageConfig) -> StageConfig:
        return replace(stage, attention=replace(stage.attention, **of_attention), **of_stage)

    return config.with_options(stages=tuple(map(changed, config.stages)))


def _named(config: NetworkConfig) -> NetworkConfig:
    """`config` under the name that its size has with or without distillation."""
    base = config.name.removesuffix(DISTILLED_SUFFIX)
    if base not in VARIANTS:
        return config
    return config.with_options(name=base + DISTILLED_SUFFIX if config.distillation else base)


def _read_released(name: str, revision: str | None) -> Weights:
    from iformer.models.weights.hub import (  # deferred: only downloads need it
        fetch_released,
        released,
        released_metadata,
    )

    path = fetch_released(name, revision)
    return replace(
        convert.read_weights(path), source=released(name).hub_repo, metadata=released_metadata(name, path)
    )


def _with_in_chans(loaded: Weights, config: NetworkConfig, *, adapt: bool) -> Weights:
    found, wanted = loaded.config.in_chans, config.in_chans
    if found == wanted:
        return loaded
    if not adapt or found != 3:
        raise WeightsError(
            f"{loaded.source} reads images of {found} channels, the network {wanted}; "
            + (f"pass in_chans={found}" if found != 3 else "pass in_chans=3, or adapt_in_chans=True to convert")
        )
    from timm.models import adapt_input_conv  # deferred: importing timm takes a second

    kernel: Tensor = adapt_input_conv(wanted, loaded.state_dict[_INPUT_KEY])
    return replace(
        loaded,
        config=loaded.config.with_options(in_chans=wanted),
        state_dict={**loaded.state_dict, _INPUT_KEY: kernel},
    )


def _with_weights(
    config: NetworkConfig,
    loaded: Weights,
    *,
    features_only: bool,
    out_indices: Sequence[int],
    reset_head: bool,
) -> Backbone:
    different = convert.differences(config, loaded.config)
    if different:
        held = convert.variant_name(loaded.config) or f"a network named {loaded.config.name}"
        raise WeightsError(
            f"{loaded.source} holds {held}, not {config.name} as asked for; "
            f"they differ in {', '.join(different[:5])}{' and more' if len(different) > 5 else ''}"
        )
    new_head = reset_head or config.num_classes == 0
    if not new_head:
        _check_head(config, loaded)
    state_dict = without_head(loaded.state_dict) if new_head else loaded.state_dict
    with torch.device("meta"):  # a shell without memory; each of its tensors is replaced by `load_strict`
        shell = config.with_options(num_classes=0) if new_head else config
        model = build(shell, features_only=features_only, out_indices=out_indices)
    load_strict(model, state_dict, source=loaded.source)
    model.config = config
    model.metadata = without_classes(loaded.metadata) if new_head else loaded.metadata
    if new_head and isinstance(model, Classifier):
        model.reset_classifier(config.num_classes, distillation=config.distillation)
    return model


def _check_head(config: NetworkConfig, loaded: Weights) -> None:
    """Raise `WeightsError` unless the weights' head is the network's."""
    found = loaded.config
    if found.num_classes == 0:
        what = "has no head"
    elif found.distillation != config.distillation:
        heads = {True: "two heads (distilled)", False: "one head"}
        what = f"has {heads[found.distillation]}, the network {heads[config.distillation]}"
    elif found.num_classes != config.num_classes:
        what = f"has a head of {found.num_classes} classes, the network one of {config.num_classes}"
    else:
        return
    raise WeightsError(f"{loaded.source} {what}; pass reset_head=True for a new, randomly initialised head")
