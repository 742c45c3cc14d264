"""Being told to stop: a scheduler's signal ends a run between two steps, saved, with a code that asks for more."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from iformer.errors import StoppedBySignalError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What schedulers send ahead of the end: SIGTERM, and SIGUSR1 where a job asks for an early warning with it."""


class StopRequests:
    """Remembers signals, and lets all processes of a run agree on where to stop. A context manager.

    Processes agree through a group of its own on the CPU: one number a step, for which no GPU has to be waited.
    """

    def __init__(self, processes: int) -> None:
        """All processes have to make one."""
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = distributed.new_group(backend="gloo") if processes > 1 else None

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, wish: bool = False) -> tuple[bool, bool]:
        """Whether any process was told to stop, and whether any has the wish given. All have to ask."""
        if self._group is None:
            return self._received is not None, wish
        votes = torch.tensor([float(self._received is not None), float(wish)])
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self._group)
        return bool(votes[0]), bool(votes[1])

    def stopped(self, step: int, *, saved: bool) -> StoppedBySignalError:
        """The exception that ends the run after `step` steps."""
        name = signal.Signals(self._received).name if self._received is not None else "a signal to another process"
        kept = "saved" if saved else "not saved"
        return StoppedBySignalError(f"stopped by {name} at step {step}, {kept}; --resume continues the run")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number
