"""How an image becomes a network's input. It travels with the weights and into every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.checking import check, check_types, from_plain, to_plain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, centre crop, scale to 0..1, then `(x - mean) / std` per RGB channel.

    The shorter side is resized to `size / crop_pct` and the centre `size` is cut out; the defaults are
    those of the released ImageNet weights.
    """

    size: tuple[int, int] = (224, 224)
    """Height and width of the network's input, in pixels."""
    crop_pct: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_types(self)
        check(min(self.size) >= 1, self, "size", "height and width of 1 pixel or more")
        check(0.0 < self.crop_pct <= 1.0, self, "crop_pct", "a number above 0, at most 1")
        check(len(self.mean) >= 1, self, "mean", "one number a channel")
        check(len(self.std) == len(self.mean), self, "std", f"{len(self.mean)} numbers, as many as mean has")
        check(all(value > 0 for value in self.std), self, "std", "numbers above 0")

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for YAML, JSON and checkpoint metadata."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)
