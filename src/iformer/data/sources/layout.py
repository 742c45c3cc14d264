"""Names of the training and validation splits in folders and files."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from iformer.errors import DataError
from iformer.files import near_paths

Split = Literal["train", "val"]

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": (
        "val",
        "valid",
        "validation",
        "validate",
        "dev",
        "holdout",
        "heldout",
        "eval",
        "evaluation",
        "test",
        "testing",
    ),
}
"""Words that name each split, the preferred one first."""

_WORDS = {word: (split, rank) for split, words in SPLIT_NAMES.items() for rank, word in enumerate(words)}
_FILLERS = frozenset(
    ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "pic", "pics", "photo", "photos", "split")
)
_COMPOUND = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})({'|'.join(_FILLERS)})?")


class SplitName(NamedTuple):
    """A parsed folder or file name that contains the word of a split."""

    split: Split
    rank: int
    """Position of the word in `SPLIT_NAMES`; lower is preferred."""
    rest: tuple[str, ...]
    """The name's other words, without words such as "set" and "images"."""

    @property
    def is_test(self) -> bool:
        """Whether the word means a test set, whose labels are often withheld."""
        return self.split == "val" and SPLIT_NAMES["val"][self.rank].startswith("test")


def parse_split(name: str) -> SplitName | None:
    """Find the split in a folder's or file's name: "train", "training_set", "seg_test", "TestImages", "val2017".

    Returns None if the name contains no split, or several.
    """
    spaced = re.sub(
        r"(?<=[a-z])(?=[A-Z])", " ", name.replace("hold_out", "holdout").replace("hold-out", "holdout")
    )
    found: list[tuple[Split, int]] = []
    rest = []
    for word in re.findall(r"[^\W\d_]+", spaced.lower()):
        match = _COMPOUND.fullmatch(word)
        if match:
            split, rank = _WORDS[match[1]]
            found.append(("train" if split == "train" else "val", rank))
        elif word not in _FILLERS:
            rest.append(word)
    return SplitName(*found[0], tuple(rest)) if len(found) == 1 else None


def require_folder(folder: str | os.PathLike[str], expected: str) -> Path:
    """Return the folder's path.

    Raises:
        DataError: `folder` does not exist or is not a folder; the message ends with `expected`.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        found = os.path.exists(root)
        reason = "not a folder" if found else "no such folder"
        raise DataError(f"{root}: {reason}; {expected}{'' if found else near_paths(root)}")
    return root


def display_name(root: Path, split: str) -> str:
    """Return a split's name for messages: "pets train"."""
    return f"{writable(root.name or root.resolve().name)} {split}"


def writable(name: str) -> str:
    """Escape bytes that are not UTF-8, control characters and line separators, so that the name can be written.

    The result is the same in every locale: in ASCII locales, Python represents UTF-8 file names by surrogates.
    """
    with contextlib.suppress(UnicodeError):
        name = name.encode("utf-8", "surrogateescape").decode()
    return "".join(
        f"\\x{ord(letter) - 0xDC00:02x}" if 0xDC80 <= ord(letter) <= 0xDCFF
        else letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        else letter
        for letter in name
    )  # fmt: skip


def same_but_for_unicode(names: Iterable[str]) -> list[Sequence[str]]:
    """Return the groups of different names that look the same: they differ only in Unicode normalisation."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return [group for group in groups.values() if len(set(group)) > 1]


def explain_unicode(names: Iterable[str], *, remedy: str = "rename one folder") -> str:
    """Return a clause, for an error message, about names that look the same; empty if there are none."""
    groups = same_but_for_unicode(names)
    if not groups:
        return ""
    forms = " and ".join(dict.fromkeys(ascii(name) for name in groups[0]))
    return f"{groups[0][0]} is written in two Unicode forms ({forms}): {remedy}"
