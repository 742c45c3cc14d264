"""Triton kernels of `batch_norm.py`. Importing this module needs Triton.

A batch with channels last is a matrix of M rows, the pixels of all images, and C columns, the channels.
`column_sums` reads it once and leaves P partial sums of each column. `finish_forward` and `finish_backward` add
them up and compute what the columns need. `scale_columns` writes the result. Sums are in fp32 and in a fixed
order, so results are the same in every run. Variances are sums of squared distances to the running mean, which is
near the mean: E[x^2] - E[x]^2 would lose digits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def column_sums(
    x_ptr,
    y_ptr,
    shift_ptr,
    sums_ptr,
    rows,
    columns,
    parts,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_Y: tl.constexpr,
):
    """Write P x C partial sums of d = x - shift and of d^2; with y, of y and of y d."""
    part = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    shift = tl.load(shift_ptr + column, mask=inside, other=0)
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(part * ROWS, rows, parts * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None].to(tl.int64) * columns + column[None, :]
        d = tl.where(mask, tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32) - shift[None, :], 0.0)
        if HAS_Y:
            y = tl.load(y_ptr + at, mask=mask, other=0).to(tl.float32)
            first += y
            second += y * d
        else:
            first += d
            second += d * d
    tl.store(sums_ptr + part * columns + column, tl.sum(first, 0), mask=inside)
    tl.store(sums_ptr + (parts + part) * columns + column, tl.sum(second, 0), mask=inside)


@triton.jit
def column_totals(
    sums_ptr,
    column,
    columns,
    PARTS: tl.constexpr,
):
    """Return the sums over the parts of P x C partial sums, for some columns."""
    at = tl.arange(0, PARTS)[:, None] * columns + column[None, :]
    return tl.sum(tl.load(sums_ptr + at, mask=(column < columns)[None, :], other=0), 0)


@triton.jit
def finish_forward(
    sums_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    out_ptr,
    rows,
    columns,
    eps,
    momentum,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write 4 x C: mean, 1 / standard deviation, scale and shift of the output. Update the running statistics."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    first = column_totals(sums_ptr, column, columns, PARTS)
    second = column_totals(sums_ptr + PARTS * columns, column, columns, PARTS)
    running_mean = tl.load(mean_ptr + column, mask=inside, other=0)
    running_var = tl.load(var_ptr + column, mask=inside, other=0)
    offset = first / rows
    mean = running_mean + offset
    var = tl.maximum(second / rows - offset * offset, 0.0)
    inverse = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight_ptr + column, mask=inside, other=0) * inverse
    shift = tl.load(bias_ptr + column, mask=inside, other=0) - mean * scale
    tl.store(mean_ptr + column, running_mean + momentum * offset, mask=inside)
    tl.store(var_ptr + column, running_var + momentum * (var * rows / (rows - 1) - running_var), mask=inside)
    tl.store(out_ptr + column, mean, mask=inside)
    tl.store(out_ptr + columns + column, inverse, mask=inside)
    tl.store(out_ptr + 2 * columns + column, scale, mask=inside)
    tl.store(out_ptr + 3 * columns + column, shift, mask=inside)


@triton.jit
def finish_backward(
    sums_ptr,
    statistics_ptr,
    weight_ptr,
    out_ptr,
    rows,
    columns,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write 5 x C: gradients of weight and bias, and a, b, c of the input's gradient b x + a dy + c."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    of_bias = column_totals(sums_ptr, column, columns, PARTS)
    products = column_totals(sums_ptr + PARTS * columns, column, columns, PARTS)
    mean = tl.load(statistics_ptr + column, mask=inside, other=0)
    inverse = tl.load(statistics_ptr + columns + column, mask=inside, other=0)
    a = tl.load(weight_ptr + column, mask=inside, other=0) * inverse
    b = -a * inverse * inverse * products / rows
    tl.store(out_ptr + column, products * inverse, mask=inside)
    tl.store(out_ptr + columns + column, of_bias, mask=inside)
    tl.store(out_ptr + 2 * columns + column, b, mask=inside)
    tl.store(out_ptr + 3 * columns + column, -a * of_bias / rows - b * mean, mask=inside)
    tl.store(out_ptr + 4 * columns + column, a, mask=inside)


@triton.jit
def scale_columns(
    x_ptr,
    y_ptr,
    factors_ptr,
    out_ptr,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_Y: tl.constexpr,
):
    """Write factors[0] x + factors[1], and with y plus factors[2] y; factors are 2 x C or 3 x C."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
    out = x * tl.load(factors_ptr + column, mask=inside, other=0)[None, :]
    out += tl.load(factors_ptr + columns + column, mask=inside, other=0)[None, :]
    if HAS_Y:
        y = tl.load(y_ptr + at, mask=mask, other=0).to(tl.float32)
        out += y * tl.load(factors_ptr + 2 * columns + column, mask=inside, other=0)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)
