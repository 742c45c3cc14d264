"""Evaluate Core ML programs in PyTorch, in fp32, by the documented definitions of their operations.

Only operations that iFormer's networks use are defined; a program with any other operation is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iformer.errors import UserError

_IGNORED = ("const", "classify")
"""Operations that are skipped. Constants are read where they are used; `coreml.py` checks the class labels."""


def evaluate_program(function: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one function of a program.

    Args:
        function: a `coremltools` MIL function.
        inputs: inputs of the function by name.

    Returns:
        Every computed value, intermediate values included, by name.

    Raises:
        UserError: an operation of the program is not defined here.
    """
    values: dict[str, Any] = {name: tensor.float() for name, tensor in inputs.items()}
    for operation in function.operations:
        kind = operation.op_type
        if kind.startswith("constexpr_"):  # a compressed weight
            weight = np.asarray(operation.materialized_val_inference(), dtype=np.float32)
            values[operation.outputs[0].name] = torch.tensor(weight)
            continue
        if kind in _IGNORED:
            continue
        if kind not in _OPERATIONS:
            raise UserError(f"Core ML's operation '{kind}' cannot be checked on this system")
        arguments = {name: _value(variable, values) for name, variable in operation.inputs.items()}
        result = _OPERATIONS[kind](arguments)
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip((output.name for output in operation.outputs), results, strict=True))
    return values


def _value(variable: Any, values: Mapping[str, Any]) -> Any:
    """Return the value of a variable: a computed tensor, or a constant, where float arrays become fp32 tensors."""
    if isinstance(variable, list | tuple):
        return [_value(part, values) for part in variable]
    if variable is None:
        return None
    if variable.name in values:
        return values[variable.name]
    constant = variable.val
    if isinstance(constant, np.ndarray | np.generic) and np.asarray(constant).dtype.kind == "f":
        return torch.tensor(np.asarray(constant, dtype=np.float32))
    return constant


def _ints(value: Any) -> list[int]:
    return [int(number) for number in np.asarray(value).flatten()]


def _conv(a: dict[str, Any]) -> Any:
    x, weight = a["x"], a["weight"]
    strides = _ints(a["strides"]) if a.get("strides") is not None else [1, 1]
    dilations = _ints(a["dilations"]) if a.get("dilations") is not None else [1, 1]
    kind = a.get("pad_type") or "valid"
    if kind not in ("valid", "custom"):
        raise UserError(f"Core ML's padding '{kind}' cannot be checked on this system")
    if kind == "custom":
        top, bottom, left, right = _ints(a["pad"])
        x = F.pad(x, (left, right, top, bottom))
    groups = 1 if a.get("groups") is None else int(a["groups"])
    return F.conv2d(x, weight, a.get("bias"), stride=strides, dilation=dilations, groups=groups)


def _gelu(a: dict[str, Any]) -> Any:
    mode = a.get("mode") or "EXACT"
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise UserError(f"Core ML's GELU '{mode}' cannot be checked on this system")
    return F.gelu(a["x"], approximate="none" if mode == "EXACT" else "tanh")


def _matmul(a: dict[str, Any]) -> Any:
    x = a["x"].transpose(-1, -2) if a.get("transpose_x") else a["x"]
    y = a["y"].transpose(-1, -2) if a.get("transpose_y") else a["y"]
    return x @ y


def _split(a: dict[str, Any]) -> tuple[Tensor, ...]:
    axis = int(a["axis"])
    if a.get("split_sizes") is not None:
        return torch.split(a["x"], _ints(a["split_sizes"]), dim=axis)
    return torch.split(a["x"], a["x"].shape[axis] // int(a["num_splits"]), dim=axis)


def _batch_norm(a: dict[str, Any]) -> Any:
    return F.batch_norm(
        a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), training=False, eps=float(a["epsilon"])
    )


def _reshape(a: dict[str, Any]) -> Any:
    # 0 stands for the input's size along the same axis
    shape = [a["x"].shape[i] if side == 0 else side for i, side in enumerate(_ints(a["shape"]))]
    return a["x"].reshape(shape)


def _pad(a: dict[str, Any]) -> Any:
    if (a.get("mode") or "constant") != "constant":
        raise UserError(f"Core ML's padding '{a['mode']}' cannot be checked on this system")
    value = 0.0 if a.get("constant_val") is None else float(a["constant_val"])
    pairs = np.asarray(a["pad"]).reshape(-1, 2)  # of the last axes, in order
    return F.pad(a["x"], _ints(pairs[::-1]), value=value)


def _slice_by_index(a: dict[str, Any]) -> Any:
    x = a["x"]
    unset = [False] * x.ndim
    masks = [list(a[name]) if a.get(name) is not None else unset for name in ("begin_mask", "end_mask")]
    if a.get("squeeze_mask") is not None and any(a["squeeze_mask"]):
        raise UserError("Core ML's indexing by one number cannot be checked on this system")
    strides = _ints(a["stride"]) if a.get("stride") is not None else [1] * x.ndim
    parts = zip(_ints(a["begin"]), _ints(a["end"]), strides, *masks, strict=True)
    index = [slice(None if no_begin else b, None if no_end else e, s) for b, e, s, no_begin, no_end in parts]
    return x[tuple(index)]


def _cast(a: dict[str, Any]) -> Any:
    if a["dtype"] not in ("fp16", "fp32"):
        raise UserError(f"Core ML's cast to '{a['dtype']}' cannot be checked on this system")
    return a["x"].float()


def _axes(a: dict[str, Any]) -> list[int]:
    return _ints(a["axes"]) if a.get("axes") is not None else list(range(a["x"].ndim))


def _reduce_mean(a: dict[str, Any]) -> Any:
    return a["x"].mean(_axes(a), keepdim=bool(a.get("keep_dims")))


def _reduce_sum(a: dict[str, Any]) -> Any:
    return a["x"].sum(_axes(a), keepdim=bool(a.get("keep_dims")))


def _clip(a: dict[str, Any]) -> Any:
    return a["x"].clamp(float(a["alpha"]), float(a["beta"]))


def _upsample_nearest(a: dict[str, Any]) -> Any:
    factors = [1.0 if a.get(name) is None else float(a[name]) for name in _FACTORS]
    if any(factor != round(factor) for factor in factors):  # how a fraction is rounded is not documented
        raise UserError("Core ML's nearest-neighbour upsampling by a fraction cannot be checked on this system")
    return a["x"].repeat_interleave(int(factors[0]), -2).repeat_interleave(int(factors[1]), -1)


def _upsample_bilinear(a: dict[str, Any]) -> Any:
    factors = [1.0 if a.get(name) is None else float(a[name]) for name in _FACTORS]
    size = [int(side * factor + 1e-4) for side, factor in zip(a["x"].shape[-2:], factors, strict=True)]
    corners = True if a.get("align_corners") is None else bool(a["align_corners"])
    return F.interpolate(a["x"], size=size, mode="bilinear", align_corners=corners)


def _resize_bilinear(a: dict[str, Any]) -> Any:
    mode = a.get("sampling_mode") or "DEFAULT"
    if mode not in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise UserError(f"Core ML's resizing '{mode}' cannot be checked on this system")
    size = [int(a["target_size_height"]), int(a["target_size_width"])]
    return F.interpolate(a["x"], size=size, mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS")


_FACTORS = ("scale_factor_height", "scale_factor_width")


_OPERATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "add": lambda a: a["x"] + a["y"],
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": lambda a: torch.cat(a["values"], dim=int(a["axis"])),
    "conv": _conv,
    "exp": lambda a: a["x"].exp(),
    "gelu": _gelu,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "maximum": lambda a: torch.maximum(a["x"], torch.as_tensor(a["y"], dtype=torch.float32)),
    "minimum": lambda a: torch.minimum(a["x"], torch.as_tensor(a["y"], dtype=torch.float32)),
    "mul": lambda a: a["x"] * a["y"],
    "pad": _pad,
    "real_div": lambda a: a["x"] / a["y"],
    "reduce_mean": _reduce_mean,
    "reduce_sum": _reduce_sum,
    "relu": lambda a: a["x"].relu(),
    "reshape": _reshape,
    "resize_bilinear": _resize_bilinear,
    "sigmoid": lambda a: a["x"].sigmoid(),
    "slice_by_index": _slice_by_index,
    "softmax": lambda a: a["x"].softmax(int(a["axis"])),
    "split": _split,
    "sqrt": lambda a: a["x"].sqrt(),
    "square": lambda a: a["x"].square(),
    "stack": lambda a: torch.stack(a["values"], dim=int(a["axis"])),
    "sub": lambda a: a["x"] - a["y"],
    "tile": lambda a: a["x"].repeat(_ints(a["reps"])),
    "transpose": lambda a: a["x"].permute(_ints(a["perm"])),
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
