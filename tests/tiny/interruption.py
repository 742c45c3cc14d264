"""A training that is stopped at a chosen step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iformer.training.state import TrainState


@contextmanager
def stopped_after(step: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Raise `error` in the training that the block runs, right after the state of `step` was saved.

    The block must end with that error.
    """
    save = TrainState.save

    def save_and_stop(state: TrainState, path: Path, **options: Any) -> None:
        save(state, path, **options)
        if state.progress.step >= step:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", save_and_stop)
        with pytest.raises(error):
            yield
