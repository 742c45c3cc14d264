"""Work on many files in threads, in order and with progress."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Callback that gets (items done, total items). It always runs in the thread that started the work."""


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    ahead: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, computed by threads.

    Each call starts its own threads, because threads started before a fork do not exist in the forked process.

    Args:
        function: called with each item, in a thread. The first error ends the iteration.
        items: read lazily.
        workers: number of threads; None means one per core, at most 16.
        ahead: items submitted before the first result is taken; None means 4 per thread.
        progress: called with the number of results yielded so far.
    """
    workers = workers or min(16, available_cores())
    waiting = iter(items)
    running: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    try:
        running.extend(pool.submit(function, item) for item in islice(waiting, ahead or 4 * workers))
        done = 0
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(waiting, 1))
            done += 1
            if progress is not None:
                progress(done)
            yield result
    finally:  # also on Ctrl-C: do not wait for the rest of the queue
        pool.shutdown(wait=False, cancel_futures=True)
