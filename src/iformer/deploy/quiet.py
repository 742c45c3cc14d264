"""Suppress the output of converters and runtimes, which print from Python, C++ and child processes."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TextIO

from iformer.standard_streams import open_closed_streams

_NOTE_BYTES = 4000
_DESCRIPTORS = (1, 2)
_LOCK = threading.RLock()
_depth = 0  # guarded by _LOCK: nested blocks of the thread that holds it


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what this thread writes to stdout and stderr, and what C++ code and child processes write there.

    One thread at a time is quiet; others wait at the start of their block. Blocks of one thread may be nested.
    What other threads print or log to the standard streams meanwhile appears as always.

    If an error leaves the outermost block, the end of the suppressed text is added to the error's notes, which
    `--debug` shows.
    """
    global _depth
    with _LOCK, ExitStack() as stack:
        if _depth == 0:
            stack.enter_context(_suppressed())
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@contextmanager
def _suppressed() -> Iterator[None]:
    open_closed_streams()
    with ExitStack() as stack:
        written = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        saved = {descriptor: stack.enter_context(open(os.dup(descriptor), "wb")) for descriptor in _DESCRIPTORS}
        streams = {id(one): one for one in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if one}
        for stream in streams.values():
            stack.enter_context(_quiet_stream(stream, saved, written))
        try:
            for descriptor in _DESCRIPTORS:
                os.dup2(written.fileno(), descriptor)
            yield
        except Exception as error:
            written.seek(0, os.SEEK_END)
            written.seek(max(0, written.tell() - _NOTE_BYTES))
            error.add_note(written.read().decode(errors="replace"))
            raise
        finally:
            for descriptor, original in saved.items():
                os.dup2(original.fileno(), descriptor)


@contextmanager
def _quiet_stream(stream: TextIO, saved: Mapping[int, IO[bytes]], written: IO[bytes]) -> Iterator[None]:
    """Let this thread's text go to `written`, and that of other threads past the redirected descriptors.

    The stream's method is replaced, not the stream: handlers of `logging` keep the stream that they were given.
    """
    if getattr(stream, "closed", False):
        yield
        return
    original: Callable[[str], int] = stream.write
    try:
        past = saved.get(stream.fileno())
    except (OSError, ValueError, AttributeError):  # a stream in memory
        past = None
    owner: int | None = threading.get_ident()
    lock = threading.RLock()  # another thread may still be writing when the block ends

    def write(text: str) -> int:
        if threading.get_ident() == owner:
            with suppress(OSError):  # a full disk
                written.write(text.encode(errors="replace"))
            return len(text)
        with lock:
            if past is None or owner is None:
                return original(text)
            past.write(text.replace("\n", os.linesep).encode(stream.encoding, stream.errors or "strict"))
            past.flush()
            return len(text)

    replaced = "write" in getattr(stream, "__dict__", {})
    try:
        stream.write = write  # type: ignore[method-assign]
    except AttributeError:  # a stream of the user's whose methods cannot be replaced
        yield
        return
    try:
        stream.flush()
        yield
    finally:
        with lock:
            owner = None
            if replaced:
                stream.write = original  # type: ignore[method-assign]
            else:
                del stream.write
