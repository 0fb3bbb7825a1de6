# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton attention to a cache: each part of a row's keys in a program of its own, then the parts of a query joined in order.

A program takes all query heads of one key head and all new tokens at once, so that keys and values are read once. Parts begin at
multiples of PART slots after the beginning of the row, whatever the size of the cache and the other rows: the order of all sums is
the row's own. Parts beyond the end of a row do nothing. Legend: see the package; P parts, Q = m * Hq / Hkv queries of a key head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.configurations import padded_width
from emu_kernels.dispatch import launch
from emu_kernels.overlap import overlaps, start_next, wait_for_previous

LOG2_E = tl.constexpr(1.4426950408889634)
PART = 128
"""Slots of a part: two rows of 8 heads fill an H200 from 1,000 tokens on, and joining costs some hundredths of reading."""
BLOCK_PARTS = 16
"""Parts that are joined at a time."""


@triton.jit
def part_kernel(
    q_ptr, key_ptr, value_ptr, begin_ptr, end_ptr, out_ptr, peak_ptr, total_ptr, tokens, num_key_heads, num_parts, key_row,
    key_head, value_row, value_head, scale, GROUP: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
    PRODUCT: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Attend to one part: q (R, m, Hq, D) -> out (R, Hkv, P, Q, D), not divided, and peak, total (R, Hkv, P, Q), all float32."""
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row = (tl.program_id(0) // num_key_heads).to(tl.int64)
    head = tl.program_id(0) % num_key_heads
    part = tl.program_id(1)
    begin = tl.load(begin_ptr + row).to(tl.int32)
    end = tl.load(end_ptr + row).to(tl.int32)
    first = begin + part * PART
    if first < end:
        query = tl.program_id(2) * BLOCK_QUERIES + tl.arange(
            0, BLOCK_QUERIES
        )  # token by token, the heads of a group side by side
        feature = tl.arange(0, BLOCK_WIDTH)
        token = query // GROUP
        inside = token < tokens
        num_heads = num_key_heads * GROUP
        place = ((row * tokens + token[:, None]) * num_heads + head * GROUP + (query % GROUP)[:, None]) * WIDTH
        q = tl.load(q_ptr + place + feature[None, :], mask=inside[:, None] & (feature < WIDTH)[None, :], other=0.0)
        last = end - tokens + token  # the slot of each query, the last that it sees
        peak = tl.full((BLOCK_QUERIES,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_QUERIES,), dtype=tl.float32)
        out = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), dtype=tl.float32)
        key_base = key_ptr + row * key_row + head.to(tl.int64) * key_head
        value_base = value_ptr + row * value_row + head.to(tl.int64) * value_head
        for start in range(first, tl.minimum(first + PART, end), BLOCK_KEYS):
            slot = start + tl.arange(0, BLOCK_KEYS)
            here = (slot < end)[:, None] & (feature < WIDTH)[None, :]
            k = tl.load(key_base + slot[:, None] * WIDTH + feature[None, :], mask=here, other=0.0)
            scores = tl.dot(q, k.T, input_precision=PRODUCT) * (scale * LOG2_E)
            scores = tl.where(slot[None, :] <= last[:, None], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, axis=1))
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet: -inf minus -inf would be NaN
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(peak - base)
            total = total * shrink + tl.sum(weights, axis=1)
            v = tl.load(value_base + slot[:, None] * WIDTH + feature[None, :], mask=here, other=0.0)
            out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRODUCT)
            peak = new_peak
        queries = tokens * GROUP
        where = (tl.program_id(0).to(tl.int64) * num_parts + part) * queries + query
        tl.store(peak_ptr + where, peak, mask=inside)
        tl.store(total_ptr + where, total, mask=inside)
        tl.store(
            out_ptr + where[:, None] * WIDTH + feature[None, :], out, mask=inside[:, None] & (feature < WIDTH)[None, :]
        )


@triton.jit
def join_kernel(
    part_ptr, peak_ptr, total_ptr, begin_ptr, end_ptr, out_ptr, tokens, num_key_heads, num_parts, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, PART: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Join the parts of one query: what `part_kernel` left -> out (R, m, Hq, D)."""
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row = (tl.program_id(0) // num_key_heads).to(tl.int64)
    head = tl.program_id(0) % num_key_heads
    query = tl.program_id(1)
    feature = tl.arange(0, BLOCK_WIDTH)
    filled = tl.cdiv(tl.load(end_ptr + row) - tl.load(begin_ptr + row), PART).to(tl.int32)
    peak = tl.full((), float("-inf"), dtype=tl.float32)
    total = tl.full((), 0.0, dtype=tl.float32)
    out = tl.zeros((BLOCK_WIDTH,), dtype=tl.float32)
    queries = tokens * GROUP
    for start in range(0, filled, BLOCK_PARTS):  # parts side by side, so that their numbers are asked for at once
        part = start + tl.arange(0, BLOCK_PARTS)
        where = (tl.program_id(0).to(tl.int64) * num_parts + part) * queries + query
        there = part < filled
        peaks = tl.load(peak_ptr + where, mask=there, other=float("-inf"))
        totals = tl.load(total_ptr + where, mask=there, other=0.0)
        inside = there[:, None] & (feature < WIDTH)[None, :]
        parts = tl.load(part_ptr + where[:, None] * WIDTH + feature[None, :], mask=inside, other=0.0)
        new_peak = tl.maximum(peak, tl.max(peaks, axis=0))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        shrink, weights = tl.exp2(peak - base), tl.exp2(peaks - base)
        total = total * shrink + tl.sum(totals * weights, axis=0)
        out = out * shrink + tl.sum(parts * weights[:, None], axis=0)
        peak = new_peak
    out = out / tl.where(total == 0.0, 1.0, total)  # a token before the beginning of its row
    place = ((row * tokens + query // GROUP) * num_key_heads + head) * GROUP + query % GROUP
    tl.store(out_ptr + place * WIDTH + feature, out.to(out_ptr.dtype.element_ty), mask=feature < WIDTH)


def decode_blocks(dtype: torch.dtype, queries: int, width: int) -> dict[str, Any]:
    """Return block sizes for so many queries of a key head and heads of `width` features."""
    single = dtype == torch.float32
    block_width = padded_width(width)
    return {
        "BLOCK_QUERIES": min(max(triton.next_power_of_2(queries), 16), 32 if single or block_width > 128 else 64),
        "BLOCK_KEYS": 32 if single or block_width > 128 else 64,
        "BLOCK_WIDTH": block_width,
        "PRODUCT": "tf32x3" if single else None,  # three products: about the accuracy of float32
        "num_warps": 4,
        "num_stages": (1 if block_width > 128 else 2) if single else 2 if block_width > 128 else 3,
    }


def decode_attention_triton(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    begin: Tensor,
    end: Tensor,
    scale: float,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """See `decode_attention`; float32 or 16 bits."""
    q, begin, end = q.contiguous(), begin.contiguous(), end.contiguous()
    keys, values = (x if x.stride()[2:] == (x.shape[3], 1) else x.contiguous() for x in (keys, values))
    rows, tokens, num_heads, width = q.shape
    key_heads, capacity = keys.shape[1:3]
    group = num_heads // key_heads
    out = torch.empty_like(q)
    if 0 in q.shape:
        return out
    config = dict(config or decode_blocks(q.dtype, tokens * group, width))
    queries, parts = tokens * group, triton.cdiv(capacity, PART)
    partial = q.new_empty((rows, key_heads, parts, queries, width), dtype=torch.float32)
    peak, total = (q.new_empty((rows, key_heads, parts, queries), dtype=torch.float32) for _ in range(2))
    overlap, strides = overlaps(q), (keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))
    launch(
        part_kernel, (rows * key_heads, parts, triton.cdiv(queries, config["BLOCK_QUERIES"])), q, q, keys, values, begin,
        end, partial, peak, total, tokens, key_heads, parts, *strides, scale, GROUP=group, WIDTH=width, PART=PART,
        OVERLAP=overlap, launch_pdl=overlap, **config,
    )  # fmt: skip
    launch(
        join_kernel, (rows * key_heads, queries), q, partial, peak, total, begin, end, out, tokens, key_heads, parts,
        GROUP=group, WIDTH=width, PART=PART, OVERLAP=overlap, launch_pdl=overlap, BLOCK_PARTS=BLOCK_PARTS,
        BLOCK_WIDTH=config["BLOCK_WIDTH"], num_warps=2,
    )  # fmt: skip
    return out
