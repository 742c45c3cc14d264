"""The six sizes of iFormer, one row per size. A new size is a row of this file.

Sources: Table 15 for T, S, M and L, the released networks for L2 and H. Accuracies are those published for the
released weights (ImageNet-1k, 224 pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

from iformer.config.network import AttentionConfig, BlockKind, NetworkConfig, StageConfig
from iformer.errors import UnknownNameError

DISTILLED_SUFFIX = "_distilled"
_SHIPPED = {"elpv": "iformer_t_elpv.safetensors"}
"""Name of each shipped checkpoint and its file in `iformer/checkpoints`."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Location and accuracy of released ImageNet-1k weights."""

    hub_repo: str
    """Repository on the Hugging Face Hub, `USER/NAME`."""
    top1: float
    """Published top-1 accuracy in percent."""
    top5: float
    """Published top-5 accuracy in percent."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One size of iFormer: the settings in which sizes differ."""

    channels: tuple[int, int, int, int]
    """Channels of the four stages."""
    blocks: tuple[tuple[int, int, int], ...]
    """Block counts of each stage: (conv, attention, conv), in the order of the blocks."""
    parameters: int | None = None
    """Parameters of the folded network with 1000 classes, so that `iformer info` need not count them."""
    macs: int | None = None
    """Multiply-accumulate operations for one image of 224 x 224 pixels."""
    conv_expansion_ratio: float
    ffn_expansion_ratio: float
    reduction: tuple[int, int]
    """R of stage 3 and of stage 4 (`AttentionConfig.reduction`)."""
    layer_scale_init: float | None = None
    plain: Release | None = None
    """The weights that were trained without a teacher."""
    distilled: Release | None = None
    """The weights that were trained with a teacher."""

    def network(self, name: str, *, distillation: bool) -> NetworkConfig:
        """Return the config of the network, with 1000 classes."""
        reductions = (self.reduction[0], self.reduction[0], *self.reduction)
        stages = tuple(
            StageConfig(
                channels=channels,
                pattern=_pattern(*blocks),
                conv_expansion_ratio=self.conv_expansion_ratio,
                attention=AttentionConfig(reduction=reduction, ffn_expansion_ratio=self.ffn_expansion_ratio),
            )
            for channels, blocks, reduction in zip(self.channels, self.blocks, reductions, strict=True)
        )
        return NetworkConfig(
            name=name, stages=stages, distillation=distillation, layer_scale_init=self.layer_scale_init
        )


def _pattern(conv_before: int, attention: int, conv_after: int) -> tuple[tuple[BlockKind, int], ...]:
    runs: tuple[tuple[BlockKind, int], ...] = (
        ("conv", conv_before),
        ("attention", attention),
        ("conv", conv_after),
    )
    return tuple((kind, count) for kind, count in runs if count)


def _release(file: str, top1: float, top5: float) -> Release:
    return Release(hub_repo=f"timm/{file}.in1k", top1=top1, top5=top5)


VARIANTS: dict[str, Variant] = {
    "iformer_t": Variant(
        parameters=2_873_032,
        macs=530_472_064,
        channels=(32, 64, 128, 256),
        blocks=((2, 0, 0), (2, 0, 0), (6, 3, 1), (0, 2, 0)),
        conv_expansion_ratio=3,
        ffn_expansion_ratio=2,
        reduction=(2, 4),
        plain=_release("iformer_t", 74.05, 92.20),
    ),
    "iformer_s": Variant(
        parameters=6_540_152,
        macs=1_092_386_528,
        channels=(32, 64, 176, 320),
        blocks=((2, 0, 0), (2, 0, 0), (9, 3, 1), (0, 2, 0)),
        conv_expansion_ratio=4,
        ffn_expansion_ratio=3,
        reduction=(2, 4),
        plain=_release("iformer_s", 78.77, 94.54),
    ),
    "iformer_m": Variant(
        parameters=8_879_128,
        macs=1_639_944_384,
        channels=(48, 96, 192, 384),
        blocks=((2, 0, 0), (2, 0, 0), (9, 4, 1), (0, 2, 0)),
        conv_expansion_ratio=4,
        ffn_expansion_ratio=3,
        reduction=(2, 4),
        plain=_release("iformer_m", 80.43, 95.34),
        distilled=_release("iformer_m_distilled", 81.06, 95.46),
    ),
    "iformer_l": Variant(
        parameters=14_737_624,
        macs=2_826_732_224,
        channels=(48, 96, 256, 384),
        blocks=((2, 0, 0), (2, 0, 0), (8, 8, 1), (0, 2, 0)),
        conv_expansion_ratio=4,
        ffn_expansion_ratio=3,
        reduction=(2, 4),
        plain=_release("iformer_l", 81.97, 96.03),
        distilled=_release("iformer_l_distilled", 82.66, 96.15),
    ),
    "iformer_l2": Variant(
        parameters=24_455_016,
        macs=4_531_072_384,
        channels=(64, 128, 256, 512),
        blocks=((3, 0, 0), (3, 0, 0), (12, 11, 1), (0, 3, 0)),
        conv_expansion_ratio=4,
        ffn_expansion_ratio=3,
        reduction=(2, 4),
        distilled=_release("iformer_l2_distilled", 83.85, 96.73),
    ),
    "iformer_h": Variant(
        parameters=99_408_232,
        macs=15_529_612_800,
        channels=(96, 192, 384, 768),
        blocks=((5, 0, 0), (5, 0, 0), (14, 15, 1), (0, 6, 0)),
        conv_expansion_ratio=4,
        ffn_expansion_ratio=4,
        reduction=(1, 1),
        layer_scale_init=1e-6,
        plain=_release("iformer_h", 84.82, 97.07),
    ),
}


def list_models(
    filter: str | Sequence[str] = "", *, pretrained: bool = False, exclude_filters: str | Sequence[str] = ""
) -> list[str]:
    """Return the names of the networks: the plain ones from small to large, then the distilled ones.

    Args:
        filter: patterns with `*` and `?`; a name is listed if it matches one of them. Empty: all.
        pretrained: only networks with released weights.
        exclude_filters: patterns of names to leave out.
    """
    wanted, unwanted = ([text] if isinstance(text, str) else text for text in (filter or "*", exclude_filters))
    return [
        name
        for name in (*VARIANTS, *(name + DISTILLED_SUFFIX for name in VARIANTS))
        if any(fnmatchcase(name, pattern) for pattern in wanted)
        and not any(fnmatchcase(name, pattern) for pattern in unwanted)
        and (not pretrained or release(name) is not None)
    ]


def network_config(name: str) -> NetworkConfig:
    """Return the config of a network, with 1000 classes.

    Raises:
        UnknownNameError: there is no network of this name; the message suggests the nearest names.
    """
    variant, distillation = _find(name)
    return variant.network(name, distillation=distillation)


def release(name: str) -> Release | None:
    """Return the released weights of a network, or None if there are none.

    Raises:
        UnknownNameError: there is no network of this name; the message suggests the nearest names.
    """
    variant, distillation = _find(name)
    return variant.distilled if distillation else variant.plain


def listed_counts(name: str) -> dict[str, int] | None:
    """Return a network's listed `parameters_folded` and `macs` (at 224 x 224 pixels); None if not listed.

    Raises:
        UnknownNameError: there is no network of this name; the message suggests the nearest names.
    """
    variant, _ = _find(name)
    if variant.parameters is None or variant.macs is None:
        return None
    return {"parameters_folded": variant.parameters, "macs": variant.macs}


def shipped_checkpoints() -> dict[str, Path]:
    """Return name and file of every checkpoint in this installation.

    `elpv` is an iFormer-T trained on the photographs of the elpv-dataset package: functional or defective solar
    cells.
    """
    folder = Path(str(resources.files("iformer"))) / "checkpoints"
    return {name: folder / file for name, file in _SHIPPED.items() if (folder / file).is_file()}


def _find(name: str) -> tuple[Variant, bool]:
    distillation = name.endswith(DISTILLED_SUFFIX)
    base = name.removesuffix(DISTILLED_SUFFIX)
    if base not in VARIANTS:
        raise UnknownNameError("model", name, list_models())
    return VARIANTS[base], distillation
