"""The errors a user can cause: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one clear line."""


class ConfigError(UserError):
    """A field of a config is invalid. The message names the field, its value and what it may be."""


class WeightsError(UserError):
    """A weight file is damaged, hostile, of another network, or does not fit."""


class DataError(UserError):
    """A data set or an image cannot be used."""


class OutputError(UserError):
    """A result cannot be written: no room, no such folder, no right to write there."""


class MissingDependencyError(UserError):
    """An optional package is not installed. The message says what to install; nothing is installed by us."""


class StoppedBySignalError(Exception):
    """A scheduler told the run to stop; it is saved. The message is one clear line."""


class UnknownNameError(UserError):
    """A name is not known. The message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """`kind` is what was named ("model", "recipe"), `known` the names that exist."""
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}'; {hint}")


def listed(items: Sequence[str], *, limit: int = 20, separator: str = ", ") -> str:
    """Join the first `limit` items and say how many more there are: "a, b and 3 more"."""
    shown = separator.join(items[:limit])
    return shown if len(items) <= limit else f"{shown}{separator}and {len(items) - limit:,} more"


def counted(number: int, noun: str) -> str:
    """Return "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
