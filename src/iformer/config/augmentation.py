"""What is done at random to a training image, before and after it becomes a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.checking import check, check_types, from_plain, to_plain

# timm takes these sections in any order and overlooks some that it does not know, so they are checked here.
_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|p\d+(\.\d+)?|t(weights|3a|3aw)))*")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The random changes of a training image, in the order in which they are made.

    The defaults change an image only by a random resized crop and a horizontal flip. A recipe has fields
    of the same names.
    """

    scale: tuple[float, float] | None = (0.08, 1.0)
    """Smallest and largest share of the area that a random crop keeps; nothing: the image is
    resized as for evaluation, and a random window of the network's size is cut out."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    """How the crop is resized; "random" draws bilinear or bicubic for each image."""
    hflip: float = 0.5
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of a top-bottom flip."""
    rot90: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as likely; for images that have no upright."""
    rand_augment: str | None = None
    """A RandAugment string as timm spells it, such as "rand-m9-mstd0.5-inc1"; nothing: off."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; 0: off. Only where no RandAugment is."""
    random_erasing: float = 0.0
    """Probability that a rectangle of the normalised image becomes noise (timm's "pixel" mode)."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.scale is not None:
            check(
                0.0 < self.scale[0] <= self.scale[1] <= 1.0,
                self,
                "scale",
                "two rising numbers above 0, at most 1",
            )
        check(0.0 < self.ratio[0] <= self.ratio[1], self, "ratio", "two rising numbers above 0")
        for name in ("hflip", "vflip", "random_erasing"):
            check(0.0 <= getattr(self, name) <= 1.0, self, name, "a probability, 0 to 1")
        check(0.0 <= self.color_jitter <= 1.0, self, "color_jitter", "a number from 0 to 1")
        check(
            self.rand_augment is None or _RAND_AUGMENT.fullmatch(self.rand_augment) is not None,
            self,
            "rand_augment",
            'nothing, or a string such as "rand-m9-mstd0.5-inc1"',
        )

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for YAML and JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> AugmentConfig:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)
