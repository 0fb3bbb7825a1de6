# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of the rotation, with the norm of each head before it where there is one, and of its gradient.

A program takes heads of one token as two halves of their features, so that each pair that turns together is in one thread. Legend: B rows,
S positions, H heads, D features of a head, P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.configurations import MAX_ROW_WIDTH, PROGRAMS, head_blocks
from emu_kernels.dispatch import launch
from emu_kernels.rotary.cpu import norm_rotary_backward_torch, norm_rotary_torch, rotary_torch


@triton.jit
def load_halves(pointers, inside, HALF: tl.constexpr):
    """Load both halves of features in float32, `pointers` to the first ones."""
    low = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    return low, tl.load(pointers + HALF, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def turn(low, high, cos_ptr, sin_ptr, inside, HALF: tl.constexpr):
    """Turn pairs of features (..., D / 2) by angles, to which pointers (D / 2,) lead."""
    cos_low, cos_high = load_halves(cos_ptr, inside, HALF)
    sin_low, sin_high = load_halves(sin_ptr, inside, HALF)
    return low * cos_low + high * sin_low, high * cos_high + low * sin_high


@triton.jit
def inverse_root(low, high, eps, HALF: tl.constexpr):
    """Compute 1 over the root mean square of heads (H, D), of which the halves are given."""
    return tl.rsqrt(tl.sum(low * low + high * high, axis=1) / (2 * HALF) + eps)


@triton.jit
def scale_halves(low, high, inverse, weight_ptr, inside, kind: tl.constexpr, HALF: tl.constexpr):
    """Norm heads (H, D), rounding to `kind` before and after the scale as `rms_norm.cpu.normalise` does."""
    weight_low, weight_high = load_halves(weight_ptr, inside, HALF)
    low = (low * inverse[:, None]).to(kind).to(tl.float32) * weight_low
    high = (high * inverse[:, None]).to(kind).to(tl.float32) * weight_high
    return low, high


@triton.jit
def rotary_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, inverse_ptr, length, num_heads, row_stride, position_stride, head_stride,
    angle_row_stride, eps, HALF: tl.constexpr, NORM: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Turn heads of x (B, S, H, D), with NORM after their norm, whose inverse roots (B, S, H) are kept."""
    token = tl.program_id(0).to(tl.int64)
    row, position = token // length, token % length
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    lane = tl.arange(0, BLOCK_HALF)
    inside = (heads < num_heads)[:, None] & (lane < HALF)[None, :]
    place = row * row_stride + position * position_stride + heads[:, None].to(tl.int64) * head_stride + lane[None, :]
    low, high = load_halves(x_ptr + place, inside, HALF)
    if NORM:
        inverse = inverse_root(low, high, eps, HALF)
        tl.store(inverse_ptr + token * num_heads + heads, inverse, mask=heads < num_heads)
        low, high = scale_halves(
            low, high, inverse, weight_ptr + lane[None, :], (lane < HALF)[None, :], x_ptr.dtype.element_ty, HALF
        )
    angle = row * angle_row_stride + position * (2 * HALF) + lane[None, :]
    low, high = turn(low, high, cos_ptr + angle, sin_ptr + angle, (lane < HALF)[None, :], HALF)
    result = out_ptr + (token * num_heads + heads[:, None]) * (2 * HALF) + lane[None, :]
    tl.store(result, low.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(result + HALF, high.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotary_backward_kernel(
    grad_ptr, x_ptr, weight_ptr, inverse_ptr, cos_ptr, sin_ptr, d_x_ptr, partial_ptr, num_tokens, tokens_of_program, length,
    num_heads, grad_row_stride, grad_position_stride, grad_head_stride, row_stride, position_stride, head_stride,
    angle_row_stride, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Compute d x (B, S, H, D) of heads that were normed and turned, and a program's part of d weight, (P, D)."""
    start = tl.program_id(0).to(tl.int64) * tokens_of_program
    stop = tl.minimum(start + tokens_of_program, num_tokens)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    lane = tl.arange(0, BLOCK_HALF)
    features = (lane < HALF)[None, :]
    inside = (heads < num_heads)[:, None] & features
    weight_low, weight_high = load_halves(weight_ptr + lane[None, :], features, HALF)
    d_low = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    d_high = tl.zeros((BLOCK_HEADS, BLOCK_HALF), dtype=tl.float32)
    wide_heads = heads[:, None].to(tl.int64)
    for token in range(start, stop):
        row, position = token // length, token % length
        place = row * grad_row_stride + position * grad_position_stride + wide_heads * grad_head_stride + lane[None, :]
        grad_low, grad_high = load_halves(grad_ptr + place, inside, HALF)
        angle = row * angle_row_stride + position * (2 * HALF) + lane[None, :]
        cos_low, cos_high = load_halves(cos_ptr + angle, features, HALF)
        sin_low, sin_high = load_halves(sin_ptr + angle, features, HALF)
        # Back by the same angle: the transpose of the turn.
        back_low, back_high = grad_low * cos_low + grad_high * sin_high, grad_high * cos_high + grad_low * sin_low
        inverse = tl.load(inverse_ptr + token * num_heads + heads, mask=heads < num_heads, other=0.0)[:, None]
        place = row * row_stride + position * position_stride + wide_heads * head_stride + lane[None, :]
        low, high = load_halves(x_ptr + place, inside, HALF)
        low, high = low * inverse, high * inverse
        d_low += back_low * low
        d_high += back_high * high
        back_low, back_high = back_low * weight_low, back_high * weight_high
        along = (tl.sum(back_low * low + back_high * high, axis=1) / (2 * HALF))[:, None]
        result = d_x_ptr + (token * num_heads + heads[:, None]) * (2 * HALF) + lane[None, :]
        tl.store(result, ((back_low - low * along) * inverse).to(d_x_ptr.dtype.element_ty), mask=inside)
        tl.store(result + HALF, ((back_high - high * along) * inverse).to(d_x_ptr.dtype.element_ty), mask=inside)
    partial = partial_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (2 * HALF) + lane
    tl.store(partial, tl.sum(d_low, axis=0), mask=lane < HALF)
    tl.store(partial + HALF, tl.sum(d_high, axis=0), mask=lane < HALF)


def side_by_side(x: Tensor) -> Tensor:
    """Return x (B, S, H, D) with the features of a head side by side: x itself wherever they are."""
    return x if x.stride(3) == 1 else x.contiguous()


def _rotated(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    batch, length, num_heads, width = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    inverse = x.new_empty((*x.shape[:3], 1 if weight is not None else 0), dtype=torch.float32)
    if out.numel() == 0:
        return out, inverse
    x, cos, sin = side_by_side(x), cos.contiguous(), sin.contiguous()
    config = head_blocks(num_heads, width)
    launch(
        rotary_kernel, (batch * length, triton.cdiv(num_heads, config["BLOCK_HEADS"])), x, x,
        x if weight is None else weight.contiguous(), cos, sin, out, inverse, length, num_heads, *x.stride()[:3],
        cos.stride(0) if cos.shape[0] > 1 else 0, eps, HALF=width // 2, NORM=weight is not None, **config,
    )  # fmt: skip
    return out, inverse


def rotary_triton(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `op.rotary_op`; float32 or 16 bits."""
    if x.shape[3] > MAX_ROW_WIDTH:
        return rotary_torch(x, cos, sin)
    return _rotated(x, None, cos, sin, 0.0, torch.promote_types(x.dtype, cos.dtype))[0]


def norm_rotary_triton(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.norm_rotary_op`; float32 or 16 bits."""
    if x.shape[3] > MAX_ROW_WIDTH:
        return norm_rotary_torch(x, weight, cos, sin, eps)
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), cos.dtype)
    return _rotated(x, weight, cos, sin, eps, dtype)


def norm_rotary_backward_triton(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """See `op.norm_rotary_backward_op`."""
    batch, length, num_heads, width = x.shape
    if width > MAX_ROW_WIDTH:
        return norm_rotary_backward_torch(grad, x, weight, inverse, cos, sin)
    d_x = x.new_empty(x.shape)
    if d_x.numel() == 0:
        return d_x, torch.zeros_like(weight)
    grad, x, cos, sin = side_by_side(grad), side_by_side(x), cos.contiguous(), sin.contiguous()
    config = head_blocks(num_heads, width)
    num_tokens, blocks = batch * length, triton.cdiv(num_heads, config["BLOCK_HEADS"])
    share = triton.cdiv(num_tokens, max(PROGRAMS // blocks, 1))
    programs = triton.cdiv(num_tokens, share)
    partial = x.new_empty((programs * blocks, width), dtype=torch.float32)
    launch(
        rotary_backward_kernel, (programs, blocks), x, grad, x, weight.contiguous(), inverse.contiguous(), cos, sin, d_x,
        partial, num_tokens, share, length, num_heads, *grad.stride()[:3], *x.stride()[:3],
        cos.stride(0) if cos.shape[0] > 1 else 0, HALF=width // 2, **config,
    )  # fmt: skip
    return d_x, partial.sum(0).to(weight.dtype)
