"""Precision of a run: the number format of convolutions and matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from iformer.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """Return `wanted`; `auto` becomes bf16 if the device multiplies bf16 in hardware, else fp32.

    Raises:
        UserError: fp16 on a CPU, or an unknown precision.
    """
    if wanted == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision is fp16, which is for GPUs; a CPU takes fp32 or bf16")
    if wanted not in ("fp32", "bf16", "fp16"):
        raise UserError(f"precision is {wanted!r}; expected fp32, bf16, fp16 or auto")
    return wanted  # type: ignore[return-value]


def compiles(wanted: Literal["auto"] | bool, device: torch.device) -> bool:
    """Return whether to compile, from a recipe's `compile`; `auto` compiles on CUDA only, where it is faster."""
    return device.type == "cuda" if wanted == "auto" else wanted


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which convolutions and matrix products run in `precision`; weights stay in fp32.

    fp32 turns off an autocast that the caller of this package is in.
    """
    if precision == "fp32":
        return (
            torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
        )
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return False
