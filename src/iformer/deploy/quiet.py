"""Suppress the output of converters and runtimes, which print from Python, C++ and child processes."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from iformer.standard_streams import open_closed_streams

_NOTE_BYTES = 4000


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress everything written to stdout and stderr, also by C++ code and child processes.

    If an error leaves the block, the end of the suppressed text is added to the error's notes, which `--debug`
    shows.
    """
    open_closed_streams()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            os.dup2(written.fileno(), 1)
            os.dup2(written.fileno(), 2)
            with open(os.devnull, "w", encoding="utf-8") as devnull:
                sys.stdout = sys.stderr = devnull
                try:
                    yield
                finally:
                    sys.stdout, sys.stderr = streams
        except Exception as error:
            written.seek(0, os.SEEK_END)
            written.seek(max(0, written.tell() - _NOTE_BYTES))
            error.add_note(written.read().decode(errors="replace"))
            raise
        finally:
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
