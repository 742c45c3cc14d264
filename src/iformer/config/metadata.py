"""Metadata that a checkpoint stores besides its weights and the network's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iformer.config.checking import Config, Text, check, short_repr
from iformer.config.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Metadata(Config):
    """Class names, preprocessing, metrics and provenance of a trained network."""

    task: Text = "classify"
    """Name of the task, a key of `iformer.tasks.registry.TASKS`."""
    class_names: tuple[str, ...] = ()
    """One name per class, in the order of the network's outputs. Empty: unknown."""
    multi_label: bool = False
    """Whether each class is answered with yes or no: probabilities are the sigmoid of the logits, not softmax."""
    preprocessing: Preprocessing = Preprocessing()
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics on held-out data, `{"top1": 92.3, …}`; shares in percent."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights: command, commit, versions, data fingerprint, source file."""

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def threshold(self) -> float:
        """Probability from which a multi-label network predicts a class.

        The value with the best F1, stored as `metrics["threshold"]`; 0.5 if there is none.
        """
        threshold = self.metrics.get("threshold")
        return threshold if isinstance(threshold, float) and 0 < threshold < 1 else 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(set(self.class_names)) == len(self.class_names), self, "class_names", "distinct names")
