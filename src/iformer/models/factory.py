"""Build networks by name, config or checkpoint."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.variants import DISTILLED_SUFFIX, VARIANTS
from iformer.config.windows import WINDOW_OPTIONS, with_design
from iformer.errors import ConfigError, UserError, WeightsError, counted
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.timm_interface import Indices
from iformer.models.weights.checkpoint import Weights, build_network
from iformer.models.weights.header import backbone_config
from iformer.models.weights.recognition import differences, variant_name
from iformer.models.weights.resolve import Name, Size, resolve, resolve_weights
from iformer.plain_values import plain_arguments


class OtherTaskError(WeightsError):
    """Weights of another task are given where those of a classifier are needed."""

    def __init__(self, weights: Weights) -> None:
        """Build the message for Python's users, from the weights."""
        super().__init__(
            f"{weights.source} holds {weights.row.title}, which iformer.load opens; "
            "create_model takes its backbone with features_only=True"
        )
        self.weights = weights


_INPUT_KEY = "stem.conv1.conv.weight"
_NETWORK_OPTIONS = ("layer_scale_init", "stages", "stem", "stem_kernel_size", "downsample", "norm")
_STAGE_OPTIONS = ("conv_kernel_size", "conv_expansion_ratio", "expanded_kernel_size")
_ATTENTION_OPTIONS = tuple(field.name for field in fields(AttentionConfig))
_WINDOW_OPTIONS = ("windowed_stages", *WINDOW_OPTIONS)


def build(config: NetworkConfig, *, features_only: bool = False, out_indices: Indices = (0, 1, 2, 3)) -> Backbone:
    """Build a randomly initialised network: a `Classifier`, or with `features_only` a `Backbone`.

    Raises:
        UserError: `out_indices` names a stage that does not exist, or is empty.
    """
    return Backbone(config, out_indices=out_indices) if features_only else Classifier(config)


@plain_arguments
def create_model(
    name: Name,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    distillation: bool | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    weights: Name | None = None,
    revision: str | None = None,
    entry: str | None = None,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    reset_head: bool = False,
    adapt_in_chans: bool = False,
    attention: str | None = None,
    windows: str | None = None,
    **options: Any,
) -> Backbone:
    """Build a classifier or backbone, in training mode, with random, local or released weights.

    Weights are loaded strictly, with three exceptions: `features_only` and `num_classes=0` leave the head out,
    `reset_head` replaces it, and `adapt_in_chans` changes the first convolution.

    Args:
        name: a size of `list_models`, or a name of weights, which describe their network: a weight file, a run
            folder, a shipped network or `hf-hub:USER/NAME`; see `iformer.models.weights.resolve`.
        num_classes: number of classes. None: as in the weights, or 1000 without weights. 0: no head, the network
            returns pooled features.
        in_chans: number of input channels. None: as in the weights, or 3 without weights.
        distillation: build two classifiers; None follows `name`.
        drop_path_rate: drop rate of stochastic depth in the last residual.
        pretrained: use the released ImageNet-1k weights of a size, downloaded once to huggingface_hub's cache.
            Weights named by `hf-hub:` are loaded in any case.
        weights: the weights to use with a size: any name that `name` accepts. With `features_only`, the weights
            of a detector or segmenter give their backbone.
        revision: with `pretrained`, the commit, tag or branch of the hub repository.
        entry: which state dict of a training script's file to take, such as `model_ema`.
        features_only: return a `Backbone`, which gives the feature maps of `out_indices`.
        out_indices: with `features_only`, the stages whose maps are returned: indices from 0, negative ones from
            the last stage; a number n means the last n stages. Stages after the last index are not built.
        reset_head: give the network a new, randomly initialised head whatever head the weights have.
        adapt_in_chans: with weights for 3 channels and another `in_chans`, sum (1 channel) or repeat the first
            convolution's kernels, as timm does.
        attention: the design for large images: "shma" (no windows), "hybrid" or "chunk_hybrid"; None takes the
            weights' own. The same weights fit all three.
        windows: the settings of the windows, "released" or "paper"; see `iformer.config.windows.with_design`.
        options: fields of `WindowConfig` and `windowed_stages`, which replace those of `windows`; other fields of
            `NetworkConfig` (`layer_scale_init`, `stages`, `stem`, ...); fields of `StageConfig` and
            `AttentionConfig` (`modulation`, `conv_kernel_size`, ...), which apply to every stage.

    Raises:
        UnknownNameError: no such network; the message suggests the nearest names.
        ConfigError: an option is unknown or invalid; the message names it.
        WeightsError: the weights cannot be fetched or read, or do not fit the network.
        UserError: two sources of weights are given, or `revision` without `pretrained`.
    """
    if not isinstance(pretrained, bool):
        raise UserError(f"pretrained is {pretrained!r}; expected True or False")
    if pretrained and weights is not None:
        raise UserError("pretrained=True and weights were both given; give one of them")
    if revision is not None and not pretrained:
        raise UserError(f"revision is {revision!r}, which is for pretrained=True only")
    of_windows = {key: options.pop(key) for key in _WINDOW_OPTIONS if key in options}
    if attention is None and (windows is not None or of_windows):
        given = [*(["windows"] if windows is not None else []), *of_windows]
        raise ConfigError(f"{', '.join(given)} given without attention; give chunk_hybrid or hybrid (--attention)")

    named = resolve(name, entry=entry if weights is None else None)
    loaded = None
    if isinstance(named, Size):
        config = _with_options(named.config, options)
        if pretrained:
            from iformer.models.weights.hub import read_released  # deferred: only downloads need the hub's client

            loaded = read_released(named.name, revision)
        elif weights is not None:
            loaded = resolve_weights(weights, entry=entry)
    else:
        loaded = resolve_weights(named)
        config = backbone_config(loaded.config)
        on_hub = isinstance(name, str) and name.startswith(("hf-hub:", "hf_hub:"))
        if (pretrained and not on_hub) or weights is not None:
            raise UserError(f"{loaded.source} has weights already; leave out pretrained and weights")
        if options:
            raise ConfigError(f"{loaded.source} says what its network is; leave out {', '.join(sorted(options))}")
    if loaded is not None:
        loaded = _as_needed(loaded, features_only=features_only)
    if attention is not None:
        config = with_design(config, attention, preset=windows, **of_windows)
    if distillation is not None:
        config = _renamed(config.with_options(distillation=distillation))
    if in_chans is None:
        in_chans = 3 if loaded is None else backbone_config(loaded.config).in_chans
    if num_classes is None:
        num_classes = 1000 if loaded is None else loaded.config.num_classes
    config = config.with_options(in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path_rate)
    if loaded is None:
        return build(config, features_only=features_only, out_indices=out_indices)
    if features_only:
        config = config.with_options(num_classes=0)
    loaded = _with_in_chans(loaded, config, adapt=adapt_in_chans)
    return _with_weights(
        config, loaded, features_only=features_only, out_indices=out_indices, reset_head=reset_head
    )


def _as_needed(loaded: Weights, *, features_only: bool) -> Weights:
    """Return the weights of a classifier, or with `features_only` those of a backbone."""
    if features_only:
        return loaded.backbone()
    if loaded.task != "classify":
        raise OtherTaskError(loaded)
    return loaded


def _with_options(config: NetworkConfig, options: dict[str, Any]) -> NetworkConfig:
    """Return `config` with the options applied to the network, to every stage, and to every stage's attention."""
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


def _renamed(config: NetworkConfig) -> NetworkConfig:
    """Return `config` with the suffix `_distilled` in its name added or removed to match its `distillation`."""
    base = config.name.removesuffix(DISTILLED_SUFFIX)
    if base not in VARIANTS:
        return config
    return config.with_options(name=base + DISTILLED_SUFFIX if config.distillation else base)


def _with_in_chans(loaded: Weights, config: NetworkConfig, *, adapt: bool) -> Weights:
    held = backbone_config(loaded.config)
    found, wanted = held.in_chans, config.in_chans
    if found == wanted:
        return loaded
    if not adapt or found != 3:
        raise WeightsError(
            f"{loaded.source} has {found} input channels, but the network has {wanted}; "
            + (f"pass in_chans={found}" if found != 3 else "pass in_chans=3, or adapt_in_chans=True to convert")
        )
    from timm.models import adapt_input_conv  # deferred: importing timm takes a second

    kernel: Tensor = adapt_input_conv(wanted, loaded.state_dict[_INPUT_KEY])
    state_dict = {**loaded.state_dict, _INPUT_KEY: kernel}
    metadata = replace(loaded.metadata, preprocessing=loaded.metadata.preprocessing.with_channels(wanted))
    return replace(loaded, config=held.with_options(in_chans=wanted), state_dict=state_dict, metadata=metadata)


def _with_weights(
    config: NetworkConfig,
    loaded: Weights,
    *,
    features_only: bool,
    out_indices: Indices,
    reset_head: bool,
) -> Backbone:
    held = backbone_config(loaded.config)
    different = differences(config, held)
    if different:
        other = variant_name(held) != config.name
        own = "; to use their network, give the weights as the model (--model)" if other else ""
        raise WeightsError(
            f"{loaded.source} holds {variant_name(held) or f'a network named {held.name}'}, not {config.name} as "
            f"asked for; they differ in {', '.join(different[:5])}{' and more' if len(different) > 5 else ''}{own}"
        )
    if reset_head or config.num_classes == 0:
        loaded = replace(loaded.backbone(), config=config.with_options(num_classes=0))
    else:
        _check_head(config, held, loaded.source)
        loaded = replace(loaded, config=config)
    model: Backbone = build_network(loaded, features_only=features_only, out_indices=out_indices)
    if isinstance(model, Classifier) and config.num_classes != model.num_classes:
        model.reset_classifier(config.num_classes, distillation=config.distillation)
    return model


def _check_head(config: NetworkConfig, held: NetworkConfig, source: str) -> None:
    """Raise `WeightsError` unless the weights have a head with as many classes and classifiers as the network."""
    if held.num_classes == 0:
        what = "has no head"
    elif held.distillation != config.distillation:
        heads = {True: "two heads (distilled)", False: "one head"}
        what = f"has {heads[held.distillation]}, the network {heads[config.distillation]}"
    elif held.num_classes != config.num_classes:
        what = f"has a head of {counted(held.num_classes, 'class')}, the network one of {config.num_classes}"
    else:
        return
    raise WeightsError(f"{source} {what}; pass reset_head=True for a new, randomly initialised head")
