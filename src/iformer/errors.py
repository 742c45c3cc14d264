"""Errors that a user can cause. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """An error that the user can fix. The message is one line: what was given, what is expected, what to do."""

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[Any, ...]]:
        # pickle would call the class with the message, which subclasses with other arguments do not take
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[UserError], args: tuple[Any, ...], fields: Mapping[str, Any]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigError(UserError):
    """A config field is invalid. The message names the field, the given value and the allowed values."""


class WeightsError(UserError):
    """A weight file is damaged or malicious, or its tensors do not fit the network."""


class DataError(UserError):
    """A data set or an image cannot be used."""


class OutputError(UserError):
    """A result cannot be written, for example because the disk is full or the folder is missing."""


class MissingDependencyError(UserError):
    """An optional package is not installed or cannot be imported. The message says what to install or check."""


class StoppedBySignalError(BaseException):
    """A scheduler's signal stopped a run whose state is saved. The message is one line.

    Like `KeyboardInterrupt`, it is not an `Exception`, because libraries catch and wrap exceptions.
    """


class UnknownNameError(UserError):
    """A name is unknown. The message suggests the nearest known names, or lists all if none is near."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, expected: str = "") -> None:
        """Build the message.

        Args:
            kind: kind of the named thing, such as "model" or "recipe".
            name: the unknown name.
            known: the names that exist.
            expected: other accepted values, as a sentence.
        """
        known = sorted(known)
        by_lower_case = {one.lower(): one for one in known}
        matches = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.4)
        nearest = [by_lower_case[match] for match in matches]
        if nearest:
            hint = f"did you mean {' or '.join(nearest)}?"
        elif len(known) <= _LISTED:
            hint = f"known: {', '.join(known)}"
        else:
            hint = f"it is like none of the {len(known):,} known names"
        if expected:
            hint += f" {expected}" if nearest else f". {expected}"
        super().__init__(f"unknown {kind} '{printable(name, limit=100)}'; {hint}")


_LISTED = 100
"""Most names that an `UnknownNameError` lists."""


def listed(items: Sequence[str], *, limit: int = 20, separator: str = ", ", length: int = 200) -> str:
    """Join the first `limit` items, each made printable and cut to `length` characters, and count the rest."""
    shown = separator.join(printable(item, limit=length) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}{separator}and {len(items) - limit:,} more"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural, such as "1 image", "2,000 images" or "2 classes"."""
    plural = "es" if noun.endswith(("s", "x", "ch")) and not noun.endswith("epoch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def printable(text: str, *, limit: int | None = None) -> str:
    r"""Return text with control, format and undecodable characters as escape sequences such as `\x1b`.

    Args:
        limit: largest number of characters to return; longer text ends in an ellipsis. None: no limit.
    """
    # cut first: text from a malicious file may have millions of characters
    clean = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit]
    )
    if limit is None or (len(clean) <= limit and len(text) <= limit):
        return clean
    return clean[: limit - 1] + "…"


def printable_lines(text: str) -> str:
    """Return text with control characters as escape sequences, except for newlines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(error: object, *, limit: int = 200) -> str:
    """Return an error's first line (if empty, the error's type), printable and at most `limit` characters long."""
    text = str(error).strip()
    return printable(text.splitlines()[0] if text else type(error).__name__, limit=limit)
