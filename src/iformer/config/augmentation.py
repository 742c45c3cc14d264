"""Random changes of training images, before and after they become tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iformer.config.checking import Config, Pattern, Range, Share, check

Factor = Annotated[float, Range(0, 100, above=True)]
Strength = Annotated[float, Range(0, 1)]
Alpha = Annotated[float, Range(0, 1000)]

# timm takes these sections in any order and ignores some that it does not know, so they are checked here.
_RAND_AUGMENT = r"rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|p\d+(\.\d+)?|t(weights|3a|3aw)))*"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """The random changes of a training image, in the order in which they are made.

    The defaults are a random resized crop and a horizontal flip.
    """

    scale: tuple[Share, Share] | None = (0.08, 1.0)
    """Smallest and largest share of the area that a random crop keeps. None: the image is resized as for
    evaluation and a random window of the network's size is cut out."""
    ratio: tuple[Factor, Factor] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a random crop."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    """Interpolation of the crop; "random" draws bilinear or bicubic for each image."""
    hflip: Share = 0.5
    """Probability of a left-right flip."""
    vflip: Share = 0.0
    """Probability of a top-bottom flip."""
    rot90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, each equally likely; for images without an upright direction."""
    rand_augment: Annotated[str, Pattern(_RAND_AUGMENT, example="rand-m9-mstd0.5-inc1")] | None = None
    """RandAugment in timm's notation, for example "rand-m9-mstd0.5-inc1". None: off."""
    color_jitter: Strength = 0.0
    """Largest relative change of brightness, contrast and saturation. 0: off. Not used with RandAugment."""
    random_erasing: Share = 0.0
    """Probability that a rectangle of the normalised image is replaced by noise (timm's "pixel" mode)."""
    mixup_alpha: Alpha = 0.0
    """Alpha of the beta distribution of mixup. 0: off."""
    cutmix_alpha: Alpha = 0.0
    """Alpha of the beta distribution of cutmix. 0: off."""
    mixup_prob: Share = 1.0
    """Share of the batches that are mixed, if mixup or cutmix is on."""
    mixup_switch_prob: Share = 0.5
    """Share of cutmix among the mixed batches, if both are on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.scale or (1.0, 1.0)
        check(0 < scale[0] <= scale[1], self, "scale", "null or two rising numbers above 0, up to 1")
        check(self.ratio[0] <= self.ratio[1], self, "ratio", "two rising numbers above 0")

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
