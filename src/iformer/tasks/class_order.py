"""Match the classes of a data set to the outputs of a network, by name."""

from __future__ import annotations

from collections.abc import Sequence

from iformer.data.sources.layout import writable
from iformer.errors import DataError, counted, listed


def class_order(known: Sequence[str], class_names: Sequence[str]) -> tuple[int | None, ...]:
    """Return the index of the network's output for each class of a data set; None for an unknown class.

    Args:
        known: class names of the network, in the order of its outputs. If empty, they are `class_names`.
        class_names: class names of the data set.

    Raises:
        DataError: the network knows none of the classes.
    """
    if not known:
        return tuple(range(len(class_names)))
    index = {writable(name): place for place, name in enumerate(known)}  # early versions stored other bytes
    order = tuple(index.get(writable(name)) for name in class_names)
    if all(place is None for place in order):
        raise other_classes(known, class_names)
    return order


def other_classes(known: Sequence[str], class_names: Sequence[str]) -> DataError:
    """Return the error for data whose classes differ from the network's; the message lists the differences."""
    ours, theirs = [writable(name) for name in known], [writable(name) for name in class_names]
    differences = [
        f"only {whose}: {listed(sorted(names))}"
        for whose, names in (
            ("the network knows", set(ours) - set(theirs)),
            ("the data has", set(theirs) - set(ours)),
        )
        if names
    ]
    return DataError(f"the classes of the data are not those of the network ({'; '.join(differences)})")


def refuse_unknown(known: Sequence[str], class_names: Sequence[str]) -> None:
    """Raise a `DataError` if a data set has a class that is not in `known`, unless `known` is empty."""
    if None in class_order(known, class_names):
        raise other_classes(known, class_names)


def share_notes(
    known: Sequence[str], class_names: Sequence[str], *, used: int, total: int, noun: str
) -> list[str]:
    """Return notes on what an evaluation leaves out because the classes of data and network differ.

    Args:
        known: class names of the network. If empty, there are no notes.
        class_names: class names of the data set.
        used: number of annotations of classes that the network knows.
        total: number of all annotations.
        noun: singular noun for an annotation, such as "object".
    """
    if not known:
        return []
    ours, theirs = set(map(writable, known)), set(map(writable, class_names))
    unknown, missing = sorted(theirs - ours), sorted(ours - theirs)
    notes = []
    if unknown:
        share = 100 * used / total if total else 100.0
        notes.append(
            f"used {used:,} of {counted(total, noun)} ({share:.1f} %): the network does not know {listed(unknown)}"
        )
    if missing:
        notes.append(
            f"the data has {len(ours & theirs)} of the network's {len(ours)} classes, and only they are measured; "
            f"it does not have {listed(missing)}"
        )
    return notes
