"""The errors a user can cause: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """An error that the user can fix. The message is one line: what was given, what is expected, what to do."""


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


class StoppedBySignalError(BaseException):
    """A scheduler told the run to stop; its state is saved. The message is one clear line.

    Like `KeyboardInterrupt`, it is not an `Exception`, because libraries catch and wrap exceptions.
    """


class UnknownNameError(UserError):
    """A name is not known. The message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, expected: str = "") -> None:
        """Build the message.

        Args:
            kind: what was named ("model", "recipe").
            name: the unknown name.
            known: the names that exist.
            expected: what may be given instead of a name, as a sentence.
        """
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
        if expected:
            hint += f" {expected}" if nearest else f". {expected}"
        super().__init__(f"unknown {kind} '{printable(name)}'; {hint}")


def listed(items: Sequence[str], *, limit: int = 20, separator: str = ", ", length: int = 200) -> str:
    """Join the first `limit` items, printable and up to `length` long, and say how many more there are."""
    shown = separator.join(printable(item, limit=length) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}{separator}and {len(items) - limit:,} more"


def counted(number: int, noun: str) -> str:
    """Return "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str, *, limit: int | None = None) -> str:
    r"""Return text with control, format and undecodable characters as escape sequences such as `\x1b`.

    Args:
        limit: the most characters to return; longer text ends in an ellipsis.
    """
    # not more than is shown: a hostile file's text may have millions of characters
    clean = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit]
    )
    if limit is None or (len(clean) <= limit and len(text) <= limit):
        return clean
    return clean[: limit - 1] + "…"


def printable_lines(text: str) -> str:
    """Return text with its control characters as escape sequences, except for line ends."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(error: object) -> str:
    """Return the first line of an error's text, printable and at most 200 characters long."""
    text = str(error).strip()
    return printable(text.splitlines()[0] if text else type(error).__name__, limit=200)
