"""Find the weights of a network in the file of a training script.

Scripts nest the state dict under some key (`state_dict`, `model_ema`), and modules around the network add a prefix
to its keys: `module.` (DistributedDataParallel, `AveragedModel`), `_orig_mod.` (`torch.compile`), `model.`
(Lightning). Every state dict in the file that holds an iFormer's first convolution, under any prefix, is an entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iformer.errors import WeightsError, listed
from iformer.models.weights.pickles import description_of
from iformer.models.weights.recognition import MARKERS, recognise

ENTRIES = ("model", "state_dict", "model_state_dict", "net", "network", "module", "student")
"""Keys under which training scripts store the weights themselves, most preferred first."""
_AVERAGES = ("ema", "averag", "swa", "shadow", "teacher")
"""Words that mark a key as an average or as another network. Such an entry is taken only if there is no other."""
_WRAPPERS = ("module", "_orig_mod")
_COUNTERS = ("n_averaged",)
"""Keys that wrappers add to a state dict and that say nothing about the network."""
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Entry:
    """A state dict with an iFormer's weights."""

    path: tuple[str, ...]
    """Keys that lead to the state dict, then the names of the modules around the network."""
    prefix: str
    content: Mapping[Any, Any]

    @property
    def label(self) -> str:
        """Short name of the entry, as accepted by `select_entry`."""
        return ".".join(part for part in self.path if part not in _WRAPPERS) or "the file itself"

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Sort key: the preferred entry comes first."""
        average = any(word in part.lower() for part in self.path for word in _AVERAGES)
        known = min((ENTRIES.index(part) for part in self.path if part in ENTRIES), default=len(ENTRIES))
        return average, known if self.path else -1, len(self.path)

    def is_named(self, name: str) -> bool:
        """Return whether `name` is the label, the label's first keys, or a key that leads to the entry."""
        return name in self.path or f"{self.label}.".startswith(f"{name}.")


class Selected(NamedTuple):
    """A state dict that was found in the content of a file."""

    state_dict: dict[str, Tensor]
    """The weights, without key prefixes."""
    beside: tuple[str, ...]
    """The other keys next to those of the weights."""
    description: dict[str, str]
    """Strings of a checkpoint's header; empty unless the file was converted from a checkpoint."""


def select_entry(content: Any, entry: str | None = None) -> Selected:
    """Find a network's state dict in the content of a file.

    Args:
        content: the content of the file.
        entry: the key of the state dict to take, such as `model_ema`. None: the weights themselves, or their
            average if there is nothing else.

    Raises:
        WeightsError: there is no state dict with an iFormer's weights, no such entry, or several networks of
            which none is preferred.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"expected a state dict; found a {type(content).__name__}")
    entries = list(_entries(content, (), set()))
    if not entries:
        likely = next((content[name] for name in ENTRIES if isinstance(content.get(name), dict)), content)
        recognise(_plain_tensors(likely))  # says what is wrong
    named = [found for found in entries if entry is None or found.is_named(entry)]
    if not named:
        there = list(dict.fromkeys(found.label for found in entries))
        raise WeightsError(f"it has no state dict '{entry}'; it has {listed(there)}")
    named.sort(key=lambda found: found.rank)
    chosen = named[0]
    if len(named) > 1 and chosen.rank == named[1].rank:
        labels = listed([found.label for found in named])
        raise WeightsError(f"it holds several networks: {labels}; choose one with --entry (in Python entry=)")
    others = tuple(
        found.prefix
        for found in entries
        if found.content is chosen.content and len(found.prefix) > len(chosen.prefix)
    )
    tensors = {
        key: value
        for key, value in chosen.content.items()
        if str(key).startswith(chosen.prefix) and not str(key).startswith(others)
    }
    beside = tuple(str(key) for key in chosen.content if key not in tensors and key not in _COUNTERS)
    plain = {key.removeprefix(chosen.prefix): value for key, value in _plain_tensors(tensors).items()}
    return Selected(plain, beside, description_of(chosen.content))


def _entries(content: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]) -> Iterator[Entry]:
    seen.add(id(content))  # a dict may hold itself
    for key, value in content.items():
        if isinstance(value, Tensor):
            for marker in MARKERS.values():
                if f".{key}".endswith(f".{marker}"):
                    prefix = str(key).removesuffix(marker)
                    yield Entry((*path, *prefix.split(".")[:-1]), prefix, content)
        elif isinstance(value, dict) and id(value) not in seen and len(path) < _MAX_DEPTH:
            yield from _entries(value, (*path, str(key)), seen)


def _plain_tensors(state_dict: Mapping[Any, Any]) -> dict[str, Tensor]:
    wrong = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and _is_plain(value))]
    if wrong or not state_dict:
        raise WeightsError(
            "expected a state dict of plain tensors; "
            + (f"these are not: {listed(wrong)}" if wrong else "it is empty")
        )
    return {str(key): value.detach() for key, value in state_dict.items()}


def _is_plain(value: Any) -> bool:
    """Return whether a value is a dense CPU tensor stored in full: a small file cannot ask for much memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
