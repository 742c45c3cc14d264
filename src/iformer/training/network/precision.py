"""Which number format the matrix products of a run use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from iformer.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """`auto` becomes bf16 where the device multiplies it in hardware, else fp32; others stay as they are.

    Raises:
        UserError: fp16 on a CPU, which would be slow and needs no loss scaling in bf16's place.
    """
    if wanted == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision is fp16, which is for GPUs; a CPU takes fp32 or bf16")
    assert wanted in ("fp32", "bf16", "fp16")
    return wanted  # type: ignore[return-value]


def compiles(wanted: Literal["auto"] | bool, device: torch.device) -> bool:
    """What a recipe's `compile` means on a device: `auto` is yes on CUDA GPUs only, where it was seen to pay."""
    return device.type == "cuda" if wanted == "auto" else wanted


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which convolutions and products run in `precision` and the weights stay in fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 products in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return False
