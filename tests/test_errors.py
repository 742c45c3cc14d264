"""Parts of messages."""

from __future__ import annotations

import pytest

from iformer.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2000, "training image", "2,000 training images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "box", "2 boxes"),
        (2, "batch", "2 batches"),
        (2, "epoch", "2 epochs"),
    ],
)
def test_a_counted_noun_has_the_right_plural(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected
