"""Parts of messages."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from iformer.config.checking import FieldError
from iformer.errors import DataError, UnknownNameError, UserError, counted


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


ERRORS = [
    UserError("a message"),
    DataError("one", "two"),
    UnknownNameError("model", "iformer_x", ["iformer_t", "iformer_s"]),
    FieldError("recipe", "epochs", 0, "1 or more"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_errors_reach_other_processes(error: UserError, copied: Callable[[UserError], UserError]) -> None:
    """A pool of processes waits for ever if an error of a worker cannot be unpickled."""
    again = copied(error)
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_names_in_upper_case_are_near() -> None:
    assert "did you mean iformer_t" in str(UnknownNameError("model", "IFORMER_T", ["iformer_t", "resnet"]))
