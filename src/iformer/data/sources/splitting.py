"""Reproducible stratified splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

DEFAULT_VAL_SPLIT = 0.2
"""Share of the images that becomes validation data where the data is not split and no share is given."""


def split_stratified(
    names: Sequence[str], strata: Sequence[Hashable], *, val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split items into training and validation, each stratum by itself.

    `round(len(names) * val_share)` items become validation: of each stratum its share, rounded up where the
    remainder is largest, but at least 1 and at most all but 1 (none of a stratum with a single item). Which
    items of a stratum are chosen depends only on `seed` and each item's name.

    Args:
        names: a unique name per item, such as its path below the data set's folder.
        strata: the stratum of each item.
        val_share: share of the items that become validation.
        seed: selects the items.

    Returns:
        Indices of the training and of the validation items, each ascending.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)

    def rank(index: int) -> tuple[bytes, int]:
        text = f"{seed}\0{names[index]}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), index

    counts = {}
    for stratum, indices in members.items():
        counts[stratum] = min(max(1, int(len(indices) * val_share)), len(indices) - 1)
    missing = round(len(names) * val_share) - sum(counts.values())
    # a stratum raised to 1 has no remainder; the sort is stable: strata with equal remainders keep their order
    remainders = {stratum: len(indices) * val_share - counts[stratum] for stratum, indices in members.items()}
    for stratum in sorted(members, key=lambda key: -remainders[key])[: max(0, missing)]:
        counts[stratum] = min(counts[stratum] + 1, max(0, len(members[stratum]) - 1))
    val: set[int] = set()
    for stratum, indices in members.items():
        val.update(sorted(indices, key=rank)[: counts[stratum]])
    return [index for index in range(len(names)) if index not in val], sorted(val)
