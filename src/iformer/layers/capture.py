"""Detect graph capture, during which data-dependent Python and eager-only kernels must not run."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    """Return whether `torch.compile`, `torch.export` or `torch.jit.trace` is running the network."""
    return bool(torch.compiler.is_compiling()) or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]
