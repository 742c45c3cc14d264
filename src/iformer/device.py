"""Device names, as accepted by every verb and function: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iformer.errors import UserError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device that `name` stands for on this machine.

    Args:
        name: `auto` (an accelerator that torch can use, CUDA or MPS, else the CPU) or a device name of torch, such
            as `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        UserError: `name` is not a device, or this machine lacks the device; the message lists the available ones.
    """
    import torch  # deferred: `iformer --help` needs no torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    available = ["cpu"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        available += [accelerator.type, *(f"{accelerator.type}:{index}" for index in range(count))]
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device == torch.device("cpu", 0):
        return torch.device("cpu")
    if device is None or str(device) not in available:
        raise UserError(f"device is '{name}'; this machine has {', '.join(available)} (auto takes the best)")
    return device
