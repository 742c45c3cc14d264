"""Replacement of missing standard streams, as in processes started by services, cron, and pythonw on Windows."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Connect closed streams among stdin, stdout and stderr to the null device.

    Otherwise the next opened file would get the descriptor of a closed stream, and printed text would be written
    into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 for the rest of the process
