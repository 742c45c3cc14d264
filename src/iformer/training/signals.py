"""Stopping on signals: a scheduler's signal saves and stops after the current step; Ctrl-C stops immediately."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from iformer.errors import StoppedBySignalError
from iformer.files import remove_unfinished
from iformer.locks import remove_locks

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals that schedulers send before they kill a job, SIGTERM and SIGUSR1 (an early warning), and SIGHUP, which a
terminal sends when it is closed. Signals that the process ignores, such as SIGHUP under nohup, stay ignored, and
those of `faulthandler` keep their handlers. LLVM, with which Triton compiles, installs handlers when it first runs
and drops SIGUSR1; they are replaced."""

RAISE_AFTER, EXIT_AFTER = 15.0, 25.0
"""Two times in seconds after a signal. After `RAISE_AFTER`, a run that has not finished its step (because it
evaluates or waits for images) is interrupted by an exception. After `EXIT_AFTER`, a run that still hangs (because
it waits for another rank) is ended; only unfinished files and locks are removed."""

QUICK = 2.0
"""Seconds after an interrupt during which a further Ctrl-C is ignored."""

_REQUEUE, _INTERRUPTED = 75, 130


class SignalHandler:
    """Context manager that records signals and lets all ranks agree on the step at which to stop.

    Files are replaced atomically, so a run may end at any moment without damage to the last saved state.
    """

    def __init__(self, world_size: int) -> None:
        """Create the handler of this rank. Every rank must create one."""
        self._received: int | None = None
        self._interrupted = self._overdue = False
        self._previous: dict[int, Any] = {}
        self._timers: list[threading.Timer] = []
        # on the CPU: the flags are exchanged at every step and must not wait for a GPU
        self._group: Any = distributed.new_group(backend="gloo") if world_size > 1 else None

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():  # Python accepts handlers in no other thread
            foreign = _foreign_handlers()
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN and number not in foreign:
                    self._previous[number] = signal.signal(number, self._remember)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        for number, handler in self._previous.items():
            if number == signal.SIGINT and self._interrupted:
                handler = _after_an_interrupt(time.monotonic() + QUICK)
            signal.signal(number, handler)

    def poll(self, save_now: bool = False) -> tuple[bool, bool]:
        """All-reduce the stop flag and `save_now`; return for each whether any rank has set it.

        Every rank must call it.
        """
        for number in self._previous:
            handler = signal.getsignal(number)
            if handler in (self._remember, self._interrupt):
                signal.signal(number, handler)  # LLVM may have replaced it, which Python does not notice
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
        if self._received is None:
            self._received = number
            self._after(RAISE_AFTER, self._raise_in_main_thread)
            self._after(EXIT_AFTER, lambda: _exit(_REQUEUE, self._unfinished()))
        elif self._overdue:
            self._overdue = False
            raise StoppedBySignalError(self._unfinished())

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._interrupted:  # further ones would interrupt the clean-up
            self._interrupted = True
            self._after(RAISE_AFTER, lambda: _exit(_INTERRUPTED, "interrupted"))
            raise KeyboardInterrupt

    def _raise_in_main_thread(self) -> None:
        assert self._received is not None
        self._overdue = True
        signal.pthread_kill(threading.main_thread().ident or 0, self._received)

    def _unfinished(self) -> str:
        name = signal.Signals(self._received).name if self._received is not None else "a signal"
        return f"stopped by {name}; --resume continues from the last saved state"

    def _after(self, seconds: float, function: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)


def _foreign_handlers() -> set[int]:
    """Return signals whose handlers Python does not know, such as that of `faulthandler.register`.

    They could not be restored. LLVM's handlers do not count. Empty where the system does not tell.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return set()

    def foreign(number: int) -> bool:
        return bool(caught >> (number - 1) & 1) and signal.getsignal(number) == signal.SIG_DFL

    # LLVM catches SIGSYS together with all of `SIGNALS`; nothing else does
    return set() if foreign(signal.SIGSYS) else {number for number in SIGNALS if foreign(number)}


def _after_an_interrupt(until: float) -> Callable[[int, FrameType | None], None]:
    """Return a SIGINT handler that ignores Ctrl-C until `until`, so that the process can exit undisturbed."""

    def handler(number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= until:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt

    return handler


def _exit(code: int, message: str) -> None:
    """End the process at once because its main thread hangs; remove unfinished files and locks first."""
    remove_unfinished()
    remove_locks()
    print(message, file=sys.stderr, flush=True)
    os._exit(code)
