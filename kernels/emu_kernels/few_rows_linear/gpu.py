# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of products of few rows: each weight is read once, and what comes before and after the product costs no launch.

Few rows leave a product waiting for memory, so that all that counts is how many bytes are on their way at a time. A program takes all
features of some columns, whose tiles are copied ahead of their use, stage by stage; nothing is summed between programs, and the result of a
row depends on that row alone, to the last bit. Legend: T rows, D features, N columns of all weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.configurations import configuration, few_rows
from emu_kernels.dispatch import launch
from emu_kernels.rms_norm.gpu import as_rows, rms_norm_triton


@triton.jit
def _weight_of(
    tile, first_ptr, second_ptr, third_ptr, first_columns, second_columns, third_columns, WEIGHTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Find the weight to which a tile of all columns belongs: the tile's number in it, pointer, columns, and those before it."""
    weight_ptr, columns, before = first_ptr, first_columns, 0
    if WEIGHTS > 1:
        tiles = tl.cdiv(first_columns, BLOCK_COLUMNS)
        if tile >= tiles:
            tile -= tiles
            before += first_columns
            weight_ptr, columns = second_ptr, second_columns
            if WEIGHTS > 2:
                tiles = tl.cdiv(second_columns, BLOCK_COLUMNS)
                if tile >= tiles:
                    tile -= tiles
                    before += second_columns
                    weight_ptr, columns = third_ptr, third_columns
    return tile, weight_ptr, columns, before


@triton.jit
def _load(pointers, inside, WHOLE: tl.constexpr):
    """Load a tile of a weight, of which all is there or what is inside."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _inverse_root(squares, eps, WIDTH: tl.constexpr):
    """Compute 1 over the root mean square of rows, (T, 1), from products of rows with all rows, (slices, T, T)."""
    row = tl.arange(0, squares.shape[1])
    own = tl.where(row[:, None] == row[None, :], tl.sum(squares, axis=0), 0.0)
    return tl.rsqrt(tl.sum(own, axis=1) / WIDTH + eps)[:, None]


@triton.jit
def few_rows_kernel(
    x_ptr, norm_ptr, first_ptr, second_ptr, third_ptr, residual_ptr, out_ptr, num_rows, first_columns, second_columns,
    third_columns, x_stride, residual_stride, out_stride, eps, WIDTH: tl.constexpr, WEIGHTS: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, PRODUCT: tl.constexpr, SLICES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Multiply x (T, D), with NORM normed, with weights (columns, D): out (T, N), with ADD plus a residual (T, N).

    With GATED there are two weights of equal shape, and out is silu of the first product times the second.
    """
    tile, weight_ptr, columns, before = _weight_of(
        tl.program_id(1), first_ptr, second_ptr, third_ptr, first_columns, second_columns, third_columns,
        1 if GATED else WEIGHTS, BLOCK_COLUMNS,
    )  # fmt: skip
    # Blocks of rows of the same columns follow each other, so that a weight comes from memory once.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    own = tl.minimum(column, columns - 1).to(tl.int64)[:, None] * WIDTH
    # Each warp multiplies a slice of the features of a step: 16 rows are too few to give each warp some of them.
    feature = (tl.arange(0, SLICES) * BLOCK_WIDTH)[:, None] + tl.arange(0, BLOCK_WIDTH)[None, :]
    weights = own[None, :, :] + feature[:, None, :]
    x_own = x_ptr + row.to(tl.int64)[None, :, None] * x_stride + feature[:, None, :]
    total = tl.zeros((SLICES, BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    other = tl.zeros((SLICES, BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    squares = tl.zeros((SLICES, BLOCK_ROWS, BLOCK_ROWS), dtype=tl.float32)
    WHOLE: tl.constexpr = WIDTH % (SLICES * BLOCK_WIDTH) == 0
    for start in range(0, WIDTH, SLICES * BLOCK_WIDTH):
        inside = (start + feature < WIDTH)[:, None, :]
        x = tl.load(x_own + start, mask=(row < num_rows)[None, :, None] & inside, other=0.0)
        if NORM:
            squares = tl.dot(x, tl.permute(x, 0, 2, 1), squares, input_precision=PRODUCT)  # also between rows
            scale = tl.load(norm_ptr + start + feature, mask=start + feature < WIDTH, other=0.0)
            x *= scale[:, None, :]
        weight = _load(weight_ptr + weights + start, inside, WHOLE)
        total = tl.dot(x, tl.permute(weight, 0, 2, 1), total, input_precision=PRODUCT)
        if GATED:
            second = _load(second_ptr + weights + start, inside, WHOLE)
            other = tl.dot(x, tl.permute(second, 0, 2, 1), other, input_precision=PRODUCT)
    total, other = tl.sum(total, axis=0), tl.sum(other, axis=0)
    if NORM:
        inverse = _inverse_root(squares, eps, WIDTH)
        total *= inverse
        other *= inverse
    if GATED:
        total = total * tl.sigmoid(total) * other
    written, place = (row < num_rows)[:, None] & (column < columns)[None, :], row.to(tl.int64)[:, None]
    if ADD:
        residual = residual_ptr + place * residual_stride + (before + column)[None, :]
        total += tl.load(residual, mask=written, other=0.0).to(tl.float32)
    out = out_ptr + place * out_stride + (before + column)[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=written)


def few_rows_linear_triton(
    x: Tensor,
    weights: list[Tensor],
    norm_weight: Tensor | None,
    eps: float,
    gated: bool,
    residual: Tensor | None,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """See `op.few_rows_op`; float32 or 16 bits."""
    columns = [len(weight) for weight in weights]
    out = x.new_empty(*x.shape[:-1], columns[0] if gated else sum(columns))
    if out.numel() == 0:
        return out
    if norm_weight is not None and x.dtype == torch.float16:
        # A number times its scale, before it is divided by the root, may be larger than float16 can hold.
        x, norm_weight = rms_norm_triton(x, norm_weight, eps)[0], None
    weights = [weight.contiguous() for weight in weights]
    rows, width = as_rows(x), x.shape[-1]
    others = rows if residual is None else as_rows(residual)
    config = dict(config or configuration(few_rows, x.device, x.dtype, sum(columns), width, gated))
    tiles = sum(triton.cdiv(count, config["BLOCK_COLUMNS"]) for count in (columns[:1] if gated else columns))
    launch(
        few_rows_kernel, (triton.cdiv(len(rows), config["BLOCK_ROWS"]), tiles), x, rows,
        rows if norm_weight is None else norm_weight.contiguous(), *(weights * 3)[:3], others, out, len(rows),
        *(columns * 3)[:3], rows.stride(0), others.stride(0), out.shape[-1], eps, WIDTH=width, WEIGHTS=len(weights),
        NORM=norm_weight is not None, GATED=gated, ADD=residual is not None, **config,
    )  # fmt: skip
    return out
