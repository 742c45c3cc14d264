"""Call a function in a forked process with bounds on time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from iformer.errors import UserError

CPU_SECONDS = 10
WALL_SECONDS = 120
"""For what waits and computes nothing; not 10, because the tests share a machine with others."""
MEMORY_BYTES = 3 * 2**29
"""1.5 GiB beside what the process has already."""


class Outcome(NamedTuple):
    """What became of one call."""

    kind: str
    """accepted, refused (one readable line), or what is wrong."""
    text: str = ""
    seconds: float = 0.0
    """CPU time."""
    megabytes: float = 0.0
    """Growth of the child's resident memory at its peak (`getrusage`), beside what it has from its parent."""


def call(function: Callable[[], object]) -> Outcome:
    """Return the outcome of `function()`; whatever it does, this process goes on."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writing)
    os.close(writing)
    answer = _read(reading, child)
    _, status, usage = os.wait4(child, 0)
    before, _, answer = (answer or "").partition("\n") if answer is not None else ("", "", None)
    grown = max(0.0, usage.ru_maxrss * 1024 - int(before or usage.ru_maxrss * 1024)) / 2**20
    seconds = usage.ru_utime + usage.ru_stime
    if answer is None:
        return Outcome("hangs", f"no answer after {WALL_SECONDS} s", seconds, grown)
    if not answer:
        number = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-number).name if number < 0 else str(number)
        return Outcome("too slow" if name in ("SIGXCPU", "SIGKILL") else "crash", name, seconds, grown)
    kind, _, text = answer.partition("\n")
    return Outcome(kind, text, seconds, grown)


def _run(function: Callable[[], object], writing: int) -> None:
    try:
        # the child's peak begins at what it shares with its parent, so growth is measured from there
        os.write(writing, f"{_resident_bytes()}\n".encode())
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        kind, text = _kind(function)
        os.write(writing, f"{kind}\n{text}".encode(errors="backslashreplace")[:2000])
    finally:
        os._exit(0)


def _kind(function: Callable[[], object]) -> tuple[str, str]:
    try:
        function()
    except UserError as error:
        text = str(error)
        if not text.strip() or any(not (letter.isprintable() or letter == "\n") for letter in text):
            return "unreadable error", repr(text)
        return "refused", text
    except BaseException as error:
        return "internal error", f"{type(error).__name__}: {error}"
    return "accepted", ""


def _read(reading: int, child: int) -> str | None:
    deadline, content = time.monotonic() + WALL_SECONDS, b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return None
            part = pipe.read(4096)
            if not part:
                return content.decode()
            content += part


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
