"""Modes and defaults of torch that belong to the caller's program, and that this package does not take over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def default_cpu() -> Iterator[None]:
    """Create tensors on the CPU where no device is named, whatever `torch.set_default_device` was given.

    Also a decorator, as `@default_cpu()`; not of generator functions.
    """
    with ExitStack() as modes:
        if torch.get_default_device().type != "cpu":  # else no mode: each call of torch would pay for it
            modes.enter_context(torch.device("cpu"))
        yield


@contextmanager
def training_modes() -> Iterator[None]:
    """Compute gradients, in the precision that is asked for, whatever the caller set.

    Notebooks often turn gradients off, or change the default dtype, in their first cell. Also a decorator, as
    `@training_modes()`.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as modes:
            modes.enter_context(default_cpu())
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda", "mps"):
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.set_default_dtype(before)
