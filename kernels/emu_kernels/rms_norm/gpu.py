# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of the norm: a row is read once, summed with another where asked, normed and written.

The gradient of the weight is a sum over all rows: each program adds up its own rows in order, and torch the few partial sums, so that the
result has the same bits each time. Legend: T rows, D features, P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.configurations import MAX_ROW_WIDTH, PROGRAMS, row_blocks
from emu_kernels.dispatch import launch
from emu_kernels.rms_norm.cpu import normalise, normalise_sum, rms_norm_backward_torch


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, inverse_ptr, num_rows, x_stride, residual_stride, eps,
    WIDTH: tl.constexpr, ADD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Norm rows of x (T, D), with ADD of x + residual, which is written to `total_ptr`; else that is x itself."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.arange(0, BLOCK_WIDTH)
    inside = (rows < num_rows)[:, None] & (feature < WIDTH)[None, :]
    place = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + place * x_stride + feature[None, :], mask=inside, other=0.0).to(tl.float32)
    result = place * WIDTH + feature[None, :]
    if ADD:
        x += tl.load(residual_ptr + place * residual_stride + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + result, total, mask=inside)
        x = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    tl.store(inverse_ptr + rows, inverse, mask=rows < num_rows)
    weight = tl.load(weight_ptr + feature, mask=feature < WIDTH, other=0.0).to(tl.float32)
    normed = (x * inverse[:, None]).to(total_ptr.dtype.element_ty).to(tl.float32)  # as in `cpu.normalise`
    tl.store(out_ptr + result, (normed * weight[None, :]).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, inverse_ptr, grad_sum_ptr, d_x_ptr, partial_ptr, num_rows, rows_of_program,
    grad_stride, x_stride, grad_sum_stride,
    WIDTH: tl.constexpr, ADD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute d x (T, D), with ADD plus `grad_sum_ptr` (T, D), and a program's part of d weight (P, D)."""
    start = tl.program_id(0) * rows_of_program
    stop = tl.minimum(start + rows_of_program, num_rows)
    feature = tl.arange(0, BLOCK_WIDTH)
    weight = tl.load(weight_ptr + feature, mask=feature < WIDTH, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_WIDTH,), dtype=tl.float32)
    for first in range(start, stop, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        inside = (rows < stop)[:, None] & (feature < WIDTH)[None, :]
        place = rows.to(tl.int64)[:, None]
        inverse = tl.load(inverse_ptr + rows, mask=rows < stop, other=0.0)[:, None]
        x = tl.load(x_ptr + place * x_stride + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + place * grad_stride + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        normed = x * inverse
        d_weight += tl.sum(grad * normed, axis=0)
        grad *= weight[None, :]
        along = tl.sum(grad * normed, axis=1) / WIDTH
        d_x = (grad - normed * along[:, None]) * inverse
        if ADD:
            d_x += tl.load(grad_sum_ptr + place * grad_sum_stride + feature[None, :], mask=inside, other=0.0)
        tl.store(d_x_ptr + place * WIDTH + feature[None, :], d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + tl.program_id(0) * WIDTH + feature, d_weight, mask=feature < WIDTH)


def as_rows(x: Tensor) -> Tensor:
    """Return x (..., D) as rows (T, D) whose features lie side by side: a view wherever there is one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _normed(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty(x.shape, dtype=torch.promote_types(dtype, weight.dtype))
    total = x if residual is None else x.new_empty(x.shape, dtype=dtype)
    inverse = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    if out.numel() == 0:
        return out, total, inverse
    rows = as_rows(x)
    others = rows if residual is None else as_rows(residual)
    config = row_blocks(x.shape[-1])
    launch(
        rms_norm_kernel, (triton.cdiv(len(rows), config["BLOCK_ROWS"]),), x, rows, others, weight.contiguous(), out, total,
        inverse, len(rows), rows.stride(0), others.stride(0), eps, WIDTH=x.shape[-1], ADD=residual is not None, **config,
    )  # fmt: skip
    return out, total, inverse


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`; float32 or 16 bits."""
    if x.shape[-1] > MAX_ROW_WIDTH:
        return normalise(x, weight, eps)
    out, _, inverse = _normed(x, None, weight, eps)
    return out, inverse


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.add_op`; float32 or 16 bits."""
    if x.shape[-1] > MAX_ROW_WIDTH:
        return normalise_sum(x, residual, weight, eps)
    return _normed(x, residual, weight, eps)


def rms_norm_backward_triton(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, grad_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`."""
    width = x.shape[-1]
    if width > MAX_ROW_WIDTH:
        return rms_norm_backward_torch(grad, x, weight, inverse, grad_sum)
    d_x = x.new_empty(x.shape)
    if d_x.numel() == 0:
        return d_x, torch.zeros_like(weight)
    config = row_blocks(width)
    rows, grads = as_rows(x), as_rows(grad)
    sums = grads if grad_sum is None else as_rows(grad_sum)
    share = triton.cdiv(triton.cdiv(len(rows), PROGRAMS), config["BLOCK_ROWS"]) * config["BLOCK_ROWS"]
    partial = x.new_empty((triton.cdiv(len(rows), share), width), dtype=torch.float32)
    launch(
        rms_norm_backward_kernel, (len(partial),), x, grads, rows, weight.contiguous(), inverse.contiguous(), sums, d_x,
        partial, len(rows), share, grads.stride(0), rows.stride(0), sums.stride(0), WIDTH=width,
        ADD=grad_sum is not None, **config,
    )  # fmt: skip
    return d_x, partial.sum(0).to(weight.dtype)
