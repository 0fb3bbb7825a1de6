# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of a layer's rotation in a step of generation, with the norms before it and the writes to the cache after it.

One launch, a program for each head of each token; where a token goes is read on the device. Legend: see `emu_kernels.rotary`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.configurations import MAX_ROW_WIDTH, padded_width
from emu_kernels.dispatch import launch
from emu_kernels.overlap import overlaps, start_next, wait_for_previous
from emu_kernels.rotary.cpu import rotary_into_torch
from emu_kernels.rotary.gpu import inverse_root, load_halves, scale_halves, side_by_side, turn


@triton.jit
def _turned(
    pointers, weight_ptr, cos_ptr, sin_ptr, lane, eps, kind: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """Norm and turn one head, (1, D / 2) twice."""
    inside = (lane < HALF)[None, :]
    low, high = load_halves(pointers[None, :], inside, HALF)
    if NORM:
        inverse = inverse_root(low, high, eps, HALF)
        low, high = scale_halves(low, high, inverse, weight_ptr + lane[None, :], inside, kind, HALF)
    return turn(low, high, cos_ptr[None, :], sin_ptr[None, :], inside, HALF)


@triton.jit
def _store_halves(pointers, low, high, inside, HALF: tl.constexpr):
    tl.store(pointers[None, :], low.to(pointers.dtype.element_ty), mask=inside)
    tl.store(pointers[None, :] + HALF, high.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def rotary_into_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, out_ptr, keys_ptr, values_ptr, places_ptr,
    length, num_heads, num_key_heads, num_places, capacity, q_row, q_position, q_head, k_row, k_position, k_head, v_row,
    v_position, v_head, angle_row, keys_row, keys_head, keys_slot, values_row, values_head, values_slot, eps,
    HALF: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """One head of a token: Hq of queries, then Hkv of keys, then Hkv of values; the strides are named after tensor and axis."""
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, position = token // length, token % length
    lane = tl.arange(0, BLOCK_HALF)
    features = (lane < HALF)[None, :]
    angle = row * angle_row + position * (2 * HALF) + lane
    if head < num_heads:
        q = q_ptr + row * q_row + position * q_position + head.to(tl.int64) * q_head + lane
        low, high = _turned(
            q, q_weight_ptr, cos_ptr + angle, sin_ptr + angle, lane, eps, q_ptr.dtype.element_ty, HALF, NORM
        )
        _store_halves(out_ptr + (token * num_heads + head) * (2 * HALF) + lane, low, high, features, HALF)
    else:
        place = tl.load(places_ptr + token).to(tl.int64)
        written = (place >= 0) & (place < num_places)
        to_row, slot = place // capacity, place % capacity
        if head < num_heads + num_key_heads:
            own = (head - num_heads).to(tl.int64)
            k = k_ptr + row * k_row + position * k_position + own * k_head + lane
            low, high = _turned(
                k, k_weight_ptr, cos_ptr + angle, sin_ptr + angle, lane, eps, k_ptr.dtype.element_ty, HALF, NORM
            )
            target = keys_ptr + to_row * keys_row + own * keys_head + slot * keys_slot + lane
            _store_halves(target, low, high, features & written, HALF)
        else:
            own = (head - num_heads - num_key_heads).to(tl.int64)
            v = v_ptr + row * v_row + position * v_position + own * v_head + lane
            low, high = load_halves(v[None, :], features, HALF)
            target = values_ptr + to_row * values_row + own * values_head + slot * values_slot + lane
            _store_halves(target, low, high, features & written, HALF)


def rotary_into_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """See `op.rotary_into_op`; float32 or 16 bits."""
    batch, length, num_heads, width = q.shape
    if width > MAX_ROW_WIDTH or keys.stride(3) != 1 or values.stride(3) != 1:
        return rotary_into_torch(q, k, v, cos, sin, keys, values, places, q_weight, k_weight, eps)
    out = q.new_empty(q.shape, dtype=keys.dtype)
    if batch * length * width == 0:
        return out
    q, k, v = (side_by_side(x) for x in (q, k, v))
    cos, sin, places = (x.contiguous() for x in (cos, sin, places))
    weights = [q if weight is None else weight.contiguous() for weight in (q_weight, k_weight)]
    overlap = overlaps(q)
    launch(
        rotary_into_kernel, (batch * length, num_heads + 2 * k.shape[2]), q, q, k, v, cos, sin, *weights, out, keys, values,
        places, length, num_heads, k.shape[2], keys.shape[0] * keys.shape[2], keys.shape[2], *q.stride()[:3], *k.stride()[:3],
        *v.stride()[:3], cos.stride(0) if cos.shape[0] > 1 else 0, *keys.stride()[:3], *values.stride()[:3], eps,
        HALF=width // 2, NORM=q_weight is not None, OVERLAP=overlap, launch_pdl=overlap, BLOCK_HALF=padded_width(width // 2), num_warps=1,
    )  # fmt: skip
    return out
