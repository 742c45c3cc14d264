"""A time limit for calls that wait for a server and have no limit of their own, and notes about waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from iformer.errors import counted

ResultT = TypeVar("ResultT")


def call_within(
    seconds: float, call: Callable[[], ResultT], *, latest_progress: Callable[[], float] | None = None
) -> ResultT:
    """Return the result of `call`, which runs in a thread.

    After the limit the thread goes on until the program ends, because a thread cannot be stopped.

    Args:
        seconds: longest time that the call may take.
        call: the function to call.
        latest_progress: returns when the call last made progress, in the seconds of `time.monotonic`; the limit is
            then the time without progress. None: the limit is the whole time.

    Raises:
        TimeoutError: the call has not returned within the limit.
        Exception: what `call` raises.
    """
    results: list[ResultT] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below
            failures.append(error)

    start = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        left = (start if latest_progress is None else latest_progress()) + seconds - time.monotonic()
        if left <= 0:
            limit = counted(round(seconds / 60), "minute") if seconds >= 60 else f"{seconds:g} s"
            raise TimeoutError(f"{'not complete' if latest_progress is None else 'no progress'} after {limit}")
        thread.join(min(left, 1.0))  # Ctrl-C does not interrupt a longer wait on every system
    if failures:
        raise failures[0]
    return results[0]


@contextmanager
def note_after(seconds: float, note: str, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Print a note on stderr if the block takes longer than `seconds`, and `unless` returns False then."""

    def say() -> None:
        if not unless():
            print(note, file=sys.stderr, flush=True)

    timer = threading.Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
