# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton attention, forward: online softmax over tiles of keys (FlashAttention-2, arXiv 2307.08691), packed rows and windows.

Each query sees one interval of keys, first..last; it follows from its document (`document_bounds`), the causal mask and the window,
and does not decrease along a row. A program walks only over the tiles of keys that its queries see, and applies a mask only in
tiles that some of them see in part. Where the GPU has a copy engine, tiles of 16 bits come through tensor descriptors: it fetches them
while the tensor cores work, without a thread's address arithmetic; elsewhere by pointer. No host sync, memory linear in length. Legend:
see `emu_kernels.attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emu_kernels.attention.bounds import document_bounds
from emu_kernels.attention.quarantine import any_in, quarantine, running_counts
from emu_kernels.configurations import attention_forward, configuration
from emu_kernels.dispatch import launch

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def query_block(num_queries, num_heads, BLOCK_QUERIES: tl.constexpr):
    """Find what a program owns: its row, its head, its first query, its queries, and which of them there are."""
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # of all heads, the long causal rows first
    begin = block * BLOCK_QUERIES
    queries = begin + tl.arange(0, BLOCK_QUERIES)
    return tl.program_id(0) // num_heads, tl.program_id(0) % num_heads, begin, queries, queries < num_queries


@triton.jit
def key_interval(
    position, inside, bounds_ptr, row, length, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """Find the first and last (exclusive) key that each query position sees; nothing for padding."""
    if PACKED:
        place = bounds_ptr + (row.to(tl.int64) * length + position) * 2
        first = tl.load(place, mask=inside, other=0)
        last = tl.load(place + 1, mask=inside, other=0)
    else:
        first = position * 0
        last = first + length
    if CAUSAL:
        last = tl.minimum(last, position + 1)  # padding keeps its empty interval
    if WINDOW:
        first = tl.maximum(first, position - window + 1)
        if not CAUSAL:
            last = tl.minimum(last, position + window)
    return first, last


@triton.jit
def query_interval(
    position, inside, bounds_ptr, row, length, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """Find the first and last (exclusive) query that sees each key position."""
    if PACKED:
        place = bounds_ptr + (row.to(tl.int64) * length + position) * 2
        first = tl.load(place, mask=inside, other=0)
        last = tl.load(place + 1, mask=inside, other=0)
    else:
        first = position * 0
        last = first + length
    if CAUSAL:
        first = tl.maximum(first, position)
    if WINDOW:
        last = tl.minimum(last, position + window)
        if not CAUSAL:
            first = tl.maximum(first, position - window + 1)
    return first, last


@triton.jit
def load_tile(
    source, row, head, start, length, num_heads, WIDTH: tl.constexpr, DESCRIPTORS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Load BLOCK positions of one head from `start` on, zeros beyond the row: of a descriptor, or of a pointer to (B, S, H, D)."""
    if DESCRIPTORS:  # the copy engine fills zeros beyond the row, so no mask
        tile = source.load([row, head, start, 0]).reshape(BLOCK, BLOCK_WIDTH)
    else:
        base = source + ((row.to(tl.int64) * length + start) * num_heads + head) * WIDTH
        offset, feature = tl.arange(0, BLOCK), tl.arange(0, BLOCK_WIDTH)
        place = offset[:, None] * (num_heads * WIDTH) + feature[None, :]  # 32 bits: half the registers of 64
        tile = tl.load(base + place, mask=(offset < length - start)[:, None] & (feature < WIDTH)[None, :], other=0.0)
    return tile


@triton.jit
def tile_range(first, last, inside, length, BLOCK: tl.constexpr):
    """Find, of intervals first..last, start and stop of what any of them covers, and between, in whole tiles, of what all cover.

    Returns (start, full_start, full_stop, stop), in order; tiles in start..full_start and full_stop..stop are covered in part.
    """
    # Positions beyond the row must not widen the range: `length` for minima, 0 for maxima. Beside padding, whose intervals are empty,
    # nothing is covered by all: the clamps keep the four numbers in order then.
    start = tl.maximum(tl.min(tl.where(inside, first, length), axis=0), 0) // BLOCK * BLOCK
    stop = tl.maximum(tl.minimum(tl.max(tl.where(inside, last, 0), axis=0), length), start)
    full_start = tl.cdiv(tl.max(tl.where(inside, first, 0), axis=0), BLOCK) * BLOCK
    full_start = tl.minimum(tl.maximum(full_start, start), stop)
    full_stop = tl.min(tl.where(inside, last, length), axis=0) // BLOCK * BLOCK
    return start, full_start, tl.maximum(full_stop, full_start), stop


@triton.jit
def cap_scores(scores, softcap):
    """Compute softcap * tanh(scores / softcap) and its derivative."""
    # By exp, since Triton has no tanh of its own; an overflow gives 2 / inf = 0, hence 1.
    tanh = 1.0 - 2.0 / (tl.exp(scores * (2.0 / softcap)) + 1.0)
    return softcap * tanh, 1.0 - tanh * tanh


@triton.jit
def _attend(
    out, peak, total, q, k_source, v_source, row, key_head, first, last, start, stop, length, num_key_heads, scale, softcap,
    MASKED: tl.constexpr, WIDTH: tl.constexpr, SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Continue the softmax of a tile of queries over the tiles of keys in start..stop."""
    for tile in range(start, stop, BLOCK_KEYS):
        k = load_tile(k_source, row, key_head, tile, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS, BLOCK_WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRODUCT)
        # Powers of two: the hardware has exp2, and the scale comes free with the change of base.
        factor = scale * LOG2_E
        if SOFTCAP:
            scores, _ = cap_scores(scores * scale, softcap)
            factor = LOG2_E
        if MASKED:
            keys = tile + tl.arange(0, BLOCK_KEYS)
            seen = (keys[None, :] >= first[:, None]) & (keys[None, :] < last[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * factor)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet: -inf minus -inf would be NaN
        weights = tl.exp2(scores * factor - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = load_tile(v_source, row, key_head, tile, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS, BLOCK_WIDTH)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRODUCT)
        peak = new_peak
    return out, peak, total


@triton.jit
def forward_kernel(
    q_source, k_source, v_source, out_ptr, lse_ptr, bounds_ptr, count_ptr, length, num_queries, offset, num_heads, group, window,
    softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    PART: tl.constexpr, DESCRIPTORS: tl.constexpr, PRODUCT: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Attend: sources of q, k and v (see `tile_source`), bounds (B, S, 2) -> out (B, S, Hq, D), lse (B, Hq, S) float32.

    When PACKED, queries that see a key which `count_ptr` (B, Hkv, S + 1) counts become NaN. With PART the queries are `num_queries`
    from position `offset` on, which out and lse are of.
    """
    if not PART:  # the compiler then knows no other numbers than before
        num_queries = length
    row, head, begin, queries, inside = query_block(num_queries, num_heads, BLOCK_QUERIES)
    positions = queries + offset if PART else queries
    first, last = key_interval(positions, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    start, full_start, full_stop, stop = tile_range(first, last, inside, length, BLOCK_KEYS)
    q = load_tile(q_source, row, head, begin, num_queries, num_heads, WIDTH, DESCRIPTORS, BLOCK_QUERIES, BLOCK_WIDTH)
    out = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), dtype=tl.float32)
    peak = tl.full((BLOCK_QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), dtype=tl.float32)
    key_head = head // group
    num_key_heads = num_heads // group
    # Three loops, so that the tiles in the middle, which all queries see whole, pay for no mask. Without window and documents every
    # query begins at key 0, and the first loop would be compiled for nothing.
    if WINDOW or PACKED:
        out, peak, total = _attend(
            out, peak, total, q, k_source, v_source, row, key_head, first, last, start, full_start, length, num_key_heads,
            scale, softcap, True, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
        )  # fmt: skip
    else:
        full_start = 0
    out, peak, total = _attend(
        out, peak, total, q, k_source, v_source, row, key_head, first, last, full_start, full_stop, length, num_key_heads,
        scale, softcap, False, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip
    out, peak, total = _attend(
        out, peak, total, q, k_source, v_source, row, key_head, first, last, full_stop, stop, length, num_key_heads,
        scale, softcap, True, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip

    empty = first >= last  # padding: total is 0
    out = out / tl.where(empty, 1.0, total)[:, None]
    if PACKED:
        hurt = any_in(count_ptr + (row.to(tl.int64) * num_key_heads + key_head) * (length + 1), first, last, inside)
        out = tl.where(hurt[:, None], float("nan"), out)
    lse = tl.where(empty, 0.0, (peak + tl.log2(tl.where(empty, 1.0, total))) * LN_2)
    feature = tl.arange(0, BLOCK_WIDTH)
    place = ((row.to(tl.int64) * num_queries + queries[:, None]) * num_heads + head) * WIDTH + feature[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (feature[None, :] < WIDTH))
    tl.store(lse_ptr + (row.to(tl.int64) * num_heads + head) * num_queries + queries, lse, mask=inside)


def laid_out(x: Tensor, descriptors: bool) -> Tensor:
    """Return x (B, S, H, D) as `tile_source` takes it, copied only where it must be: before several kernels that read it.

    Descriptors take addresses and strides that are multiples of 16 bytes, and get features of zeros to fill up; pointers no gaps.
    """
    if not descriptors:
        return x.contiguous()
    step = 16 // x.element_size()  # elements in 16 bytes
    if x.shape[3] % step:
        x = torch.nn.functional.pad(x, (0, step - x.shape[3] % step))
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    uneven = x.stride(3) != 1 or any(stride == 0 or stride % step for stride in strides[:-1])
    return x.clone(memory_format=torch.contiguous_format) if uneven or x.data_ptr() % 16 else x


def tile_source(x: Tensor, block: int, block_width: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """Return what the kernels load tiles of x (B, S, H, D) from: x without gaps, or a descriptor for the copy engine of a GPU.

    The descriptor shows x as (B, H, S, D), in tiles of `block` positions of one head, with zeros beyond S and D.
    """
    x = laid_out(x, descriptors)
    if not descriptors:
        return x
    step = 16 // x.element_size()
    batch, length, num_heads, width = x.shape
    row, position, head = (x.stride(axis) if x.shape[axis] > 1 else step for axis in range(3))
    shape, stride = [batch, num_heads, length, width], [row, head, position, 1]
    return TensorDescriptor(x, shape, stride, [1, 1, block, block_width])


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`; float32 or 16 bits."""
    batch, num_queries, num_heads, width = q.shape
    length = k.shape[1]
    out = torch.empty((batch, num_queries, num_heads, width), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, num_heads, num_queries), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    if bounds is None:
        bounds = document_bounds(length, segment_ids, cu_seqlens)
    counts = None
    if bounds is not None:
        # Of k only the flags: a NaN in it makes NaN scores, which the mask replaces; v is multiplied by weights of zero.
        v, flags = quarantine(v)
        counts = running_counts(quarantine(k, flags, copy=False)[1])
    config = config or configuration(attention_forward, q.device, q.dtype, width)
    queries, keys = config["BLOCK_QUERIES"], config["BLOCK_KEYS"]
    form = config["BLOCK_WIDTH"], config["DESCRIPTORS"]
    launch(
        forward_kernel, (batch * num_heads, triton.cdiv(num_queries, queries)), q, tile_source(q, queries, *form),
        tile_source(k, keys, *form), tile_source(v, keys, *form), out, lse, bounds, counts, length, num_queries,
        offset, num_heads, num_heads // k.shape[2], window, softcap, scale, WIDTH=width, CAUSAL=causal, WINDOW=window > 0,
        PACKED=bounds is not None, SOFTCAP=softcap > 0.0, PART=num_queries < length, **config,
    )  # fmt: skip
    return out, lse
