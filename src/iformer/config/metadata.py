"""What a checkpoint knows about itself beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Class names, preprocessing, metrics and provenance of a trained network."""

    task: Literal["classify", "detect", "segment"] = "classify"
    class_names: tuple[str, ...] = ()
    """One name a class, in the order of the network's outputs; empty where they are not known."""
    preprocessing: Preprocessing = Preprocessing()
    metrics: dict[str, Any] = field(default_factory=dict)
    """What was measured on held-out data, `{"top1": 92.3, …}`, in percent where it is a share."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: command, commit, versions, data fingerprint, source file."""

    def __post_init__(self) -> None:
        check_types(self)
        check(len(set(self.class_names)) == len(self.class_names), self, "class_names", "names that differ")

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Metadata:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)
