"""Recipe fields that detection and segmentation share. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.checking import check
from iformer.config.network import Pixels
from iformer.config.pyramid import PyramidOptions
from iformer.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class PyramidRecipe(Recipe):
    """Base class of recipes for networks with a feature pyramid: detection and segmentation."""

    max_size: Pixels
    """Limit of an image's longer side, in pixels, when the shorter side is resized to `size`."""
    freeze: Literal["none", "norms", "weights"] = "norms"
    """Frozen parts of the backbone: none; norms (scales, shifts and statistics of batch norms); or weights (all
    weights, while the statistics adapt)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_size >= self.size, self, "max_size", f"size ({self.size}) or more")

    def _network_fields(self, options: PyramidOptions) -> dict[str, Any]:
        return {"size": self.size, "max_size": self.max_size, **vars(options)}
