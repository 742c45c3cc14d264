"""Stopping on a scheduler's signal: the run ends between two steps with its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from iformer.errors import StoppedBySignalError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that schedulers send before they kill a job: SIGTERM, and SIGUSR1 as an early warning."""


class SignalHandler:
    """Remembers signals, and lets all ranks agree on the step to stop at. A context manager."""

    def __init__(self, world_size: int) -> None:
        """Every rank must create one."""
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        # on the CPU: the flags are exchanged at every step and must not wait for a GPU
        self._group: Any = distributed.new_group(backend="gloo") if world_size > 1 else None

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():  # Python accepts handlers in no other thread
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self, save_now: bool = False) -> tuple[bool, bool]:
        """All-reduce of the stop flag and of `save_now`: whether any rank set it. Every rank must call it."""
        if self._group is None:
            return self._received is not None, save_now
        flags = torch.tensor([float(self._received is not None), float(save_now)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self._group)
        return bool(flags[0]), bool(flags[1])

    def stopped(self, step: int) -> StoppedBySignalError:
        """Return the exception that ends the run after `step` steps."""
        name = signal.Signals(self._received).name if self._received is not None else "a signal to another process"
        return StoppedBySignalError(f"stopped by {name} at step {step}, saved; --resume continues the run")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number
