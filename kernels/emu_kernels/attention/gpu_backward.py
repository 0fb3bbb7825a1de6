# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton attention, backward: keys and values in one kernel, queries in another; deterministic, memory linear in length.

The probabilities come back from the log-sum-exp of the forward, and D_i = out_i . grad_i replaces the softmax's own backward
(FlashAttention-2, arXiv 2307.08691, section 3.1). The kernel of keys walks over all query heads of its group. Legend: see
`emu_kernels.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emu_kernels.attention.bounds import document_bounds
from emu_kernels.attention.gpu import (
    LOG2_E,
    cap_scores,
    key_interval,
    laid_out,
    load_tile,
    query_block,
    query_interval,
    tile_range,
    tile_source,
)
from emu_kernels.attention.quarantine import any_in, quarantine, running_counts
from emu_kernels.configurations import attention_backward, configuration
from emu_kernels.dispatch import launch

ROWS = 64  # of a program of `row_kernel`


@triton.jit
def row_kernel(
    out_ptr, grad_ptr, lse_ptr, base_ptr, dot_ptr, bad_ptr, length, row_length, num_heads, WIDTH: tl.constexpr,
    PACKED: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Reduce each query: out, grad (B, S, Hq, D), lse (B, Hq, S) -> lse in powers of two and out . grad, (B, Hq, row_length) float32.

    Beyond S the one is infinite and the other 0, so that the weights of those queries come out as zeros. When PACKED, so they are for
    queries with an output or log-sum-exp that is not finite, which are added to the flags (B, Hq, S).
    """
    row = (tl.program_id(0) // num_heads).to(tl.int64)
    head = tl.program_id(0) % num_heads
    positions = tl.program_id(1) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    inside = positions < length
    feature = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    place = ((row * length + positions[:, None]) * num_heads + head) * WIDTH + feature[None, :]
    out = tl.load(out_ptr + place, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
    # exp2(score - inf) = 0: queries beyond the end weigh nothing, without a mask in the loops that read this.
    lse = tl.load(lse_ptr + (row * num_heads + head) * length + positions, mask=inside, other=float("inf"))
    dot = tl.sum(out * grad, axis=1)
    if PACKED:  # a NaN here would reach the neighbours' keys through 0 * NaN in the products
        flag = bad_ptr + (row * num_heads + head) * length + positions
        finite = (tl.abs(lse) < float("inf")) & (tl.max(tl.where(tl.abs(out) < float("inf"), 0, 1), axis=1) == 0)
        bad = (tl.load(flag, mask=inside, other=0) > 0) | (inside & ~finite)
        tl.store(flag, bad.to(tl.int32), mask=inside)
        lse = tl.where(bad, float("inf"), lse)
        dot = tl.where(bad, 0.0, dot)
    result = (row * num_heads + head) * row_length + positions
    tl.store(base_ptr + result, lse * LOG2_E, mask=positions < row_length)
    tl.store(dot_ptr + result, dot, mask=positions < row_length)


@triton.jit
def attention_weights(scores, base, scale, softcap, SOFTCAP: tl.constexpr):
    """Compute the probabilities of raw scores, and the derivative of the soft cap; `base`, the lse in powers of two, broadcasts."""
    slope = scores
    factor = scale * LOG2_E
    if SOFTCAP:
        scores, slope = cap_scores(scores * scale, softcap)
        factor = LOG2_E
    return tl.exp2(scores * factor - base), slope


@triton.jit
def key_kernel(
    q_source, k_source, v_source, grad_source, base_ptr, dot_ptr, d_k_ptr, d_v_ptr, bounds_ptr, bad_ptr, length, num_queries,
    offset, row_length, num_heads, group, window, softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    PACKED: tl.constexpr, SOFTCAP: tl.constexpr, PART: tl.constexpr, DESCRIPTORS: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k and v, (B, S, Hkv, D), from q, grad (B, Hq, S, D), base and dot (B, Hq, row_length).

    When PACKED, keys that a query sees which `bad_ptr` (B, Hkv, S + 1) counts get NaN. With PART the queries, and what is of them,
    are `num_queries` from position `offset` on.
    """
    if not PART:
        num_queries = length
    num_key_heads = num_heads // group
    row = tl.program_id(0) // num_key_heads
    key_head = tl.program_id(0) % num_key_heads
    keys = tl.program_id(1) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    inside = keys < length
    first, last = query_interval(keys, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    if PART:  # from here on as numbers of queries
        first = tl.minimum(tl.maximum(first - offset, 0), num_queries)
        last = tl.minimum(tl.maximum(last - offset, 0), num_queries)
    start, full_start, full_stop, stop = tile_range(first, last, inside, num_queries, BLOCK_QUERIES)
    if not (WINDOW or PACKED):
        full_stop = stop  # the weights of queries beyond the end are zero by their lse

    k = load_tile(
        k_source, row, key_head, tl.program_id(1) * BLOCK_KEYS, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS,
        BLOCK_WIDTH,
    )  # fmt: skip
    v = load_tile(
        v_source, row, key_head, tl.program_id(1) * BLOCK_KEYS, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS,
        BLOCK_WIDTH,
    )  # fmt: skip
    d_k = tl.zeros((BLOCK_KEYS, BLOCK_WIDTH), dtype=tl.float32)
    d_v = tl.zeros((BLOCK_KEYS, BLOCK_WIDTH), dtype=tl.float32)
    num_tiles = tl.cdiv(stop - start, BLOCK_QUERIES)
    # One loop over heads and tiles, since Triton pipelines the innermost loop alone; a program owns its keys, so that there are no
    # atomic additions and sums run in one order.
    for step in range(0, group * num_tiles):
        head = key_head * group + step // num_tiles
        tile = start + step % num_tiles * BLOCK_QUERIES
        positions = tile + tl.arange(0, BLOCK_QUERIES)
        statistics = (row.to(tl.int64) * num_heads + head) * row_length + positions
        q = load_tile(q_source, row, head, tile, num_queries, num_heads, WIDTH, DESCRIPTORS, BLOCK_QUERIES, BLOCK_WIDTH)
        grad = load_tile(
            grad_source, row, head, tile, num_queries, num_heads, WIDTH, DESCRIPTORS, BLOCK_QUERIES, BLOCK_WIDTH
        )
        base = tl.load(base_ptr + statistics)
        dot = tl.load(dot_ptr + statistics)
        # (keys, queries): so the weights are the left factor of d_v as they come, and d_scores of d_k.
        scores = tl.dot(k, q.T, input_precision=PRODUCT)
        weights, slope = attention_weights(scores, base[None, :], scale, softcap, SOFTCAP)
        if (tile < full_start) | (tile >= full_stop):
            seen = (positions[None, :] >= first[:, None]) & (positions[None, :] < last[:, None])
            weights = tl.where(seen, weights, 0.0)
        d_v = tl.dot(weights.to(grad.dtype), grad, d_v, input_precision=PRODUCT)
        d_scores = weights * (tl.dot(v, grad.T, input_precision=PRODUCT) - dot[None, :])
        if SOFTCAP:
            d_scores *= slope
        d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision=PRODUCT)
    feature = tl.arange(0, BLOCK_WIDTH)
    place = ((row.to(tl.int64) * length + keys[:, None]) * num_key_heads + key_head) * WIDTH + feature[None, :]
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    if PACKED:
        hurt = any_in(bad_ptr + (row.to(tl.int64) * num_key_heads + key_head) * (num_queries + 1), first, last, inside)
        d_k = tl.where(hurt[:, None], float("nan"), d_k)
        d_v = tl.where(hurt[:, None], float("nan"), d_v)
    # The scale of the scores is applied once here, not to each tile.
    tl.store(d_k_ptr + place, (d_k * scale).to(d_k_ptr.dtype.element_ty), mask=mask)
    tl.store(d_v_ptr + place, d_v.to(d_v_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _accumulate_queries(
    d_q, q, grad, k_source, v_source, base, dot, row, key_head, first, last, start, stop, softcap, scale,
    length, num_key_heads, MASKED: tl.constexpr, WIDTH: tl.constexpr, SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Add the gradient that the keys start..stop send to a tile of queries; tiles are (queries, keys)."""
    for tile in range(start, stop, BLOCK_KEYS):
        k = load_tile(k_source, row, key_head, tile, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS, BLOCK_WIDTH)
        v = load_tile(v_source, row, key_head, tile, length, num_key_heads, WIDTH, DESCRIPTORS, BLOCK_KEYS, BLOCK_WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRODUCT)
        weights, slope = attention_weights(scores, base[:, None], scale, softcap, SOFTCAP)
        if MASKED:
            keys = tile + tl.arange(0, BLOCK_KEYS)
            seen = (keys[None, :] >= first[:, None]) & (keys[None, :] < last[:, None])
            weights = tl.where(seen, weights, 0.0)
        d_scores = weights * (tl.dot(grad, v.T, input_precision=PRODUCT) - dot[:, None])
        if SOFTCAP:
            d_scores *= slope
        d_q = tl.dot(d_scores.to(k.dtype), k, d_q, input_precision=PRODUCT)
    return d_q


@triton.jit
def query_kernel(
    q_source, k_source, v_source, grad_source, base_ptr, dot_ptr, d_q_ptr, bounds_ptr, bad_ptr, length, num_queries,
    offset, row_length, num_heads, group, window, softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    PACKED: tl.constexpr, SOFTCAP: tl.constexpr, PART: tl.constexpr, DESCRIPTORS: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of q, (B, S, Hq, D); arguments as of `key_kernel`, and `bad_ptr` the flags of queries, (B, Hq, S)."""
    if not PART:
        num_queries = length
    row, head, begin, queries, inside = query_block(num_queries, num_heads, BLOCK_QUERIES)
    positions = queries + offset if PART else queries
    first, last = key_interval(positions, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    start, full_start, full_stop, stop = tile_range(first, last, inside, length, BLOCK_KEYS)

    q = load_tile(q_source, row, head, begin, num_queries, num_heads, WIDTH, DESCRIPTORS, BLOCK_QUERIES, BLOCK_WIDTH)
    grad = load_tile(
        grad_source, row, head, begin, num_queries, num_heads, WIDTH, DESCRIPTORS, BLOCK_QUERIES, BLOCK_WIDTH
    )
    statistics = (row.to(tl.int64) * num_heads + head) * row_length + queries
    base = tl.load(base_ptr + statistics)
    dot = tl.load(dot_ptr + statistics)
    d_q = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), dtype=tl.float32)
    key_head = head // group
    num_key_heads = num_heads // group
    if WINDOW or PACKED:
        d_q = _accumulate_queries(
            d_q, q, grad, k_source, v_source, base, dot, row, key_head, first, last, start, full_start, softcap, scale,
            length, num_key_heads, True, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
        )  # fmt: skip
    else:
        full_start = 0
    d_q = _accumulate_queries(
        d_q, q, grad, k_source, v_source, base, dot, row, key_head, first, last, full_start, full_stop, softcap, scale,
        length, num_key_heads, False, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip
    d_q = _accumulate_queries(
        d_q, q, grad, k_source, v_source, base, dot, row, key_head, first, last, full_stop, stop, softcap, scale,
        length, num_key_heads, True, WIDTH, SOFTCAP, DESCRIPTORS, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip
    feature = tl.arange(0, BLOCK_WIDTH)
    place = ((row.to(tl.int64) * num_queries + queries[:, None]) * num_heads + head) * WIDTH + feature[None, :]
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    if PACKED:
        bad = tl.load(bad_ptr + (row.to(tl.int64) * num_heads + head) * num_queries + queries, mask=inside, other=0)
        d_q = tl.where(((bad > 0) & (first < last))[:, None], float("nan"), d_q)
    tl.store(d_q_ptr + place, (d_q * scale).to(d_q_ptr.dtype.element_ty), mask=mask)


def _tile_sources(tensors: tuple[Tensor, ...], config: dict[str, Any]) -> Iterator[Tensor | TensorDescriptor]:
    """Yield the sources of q, k, v and grad in the tiles of a kernel."""
    queries, keys = config["BLOCK_QUERIES"], config["BLOCK_KEYS"]
    for x, block in zip(tensors, (queries, keys, keys, queries), strict=True):
        yield tile_source(x, block, config["BLOCK_WIDTH"], config["DESCRIPTORS"])


def attention_backward_triton(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
    configs: tuple[dict[str, Any], dict[str, Any]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.backward_op`; float32 or 16 bits."""
    batch, num_queries, num_heads, width = q.shape
    length = k.shape[1]
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if d_q.numel() == 0:
        return d_q, d_k.zero_(), d_v.zero_()
    if bounds is None:
        bounds = document_bounds(length, segment_ids, cu_seqlens)
    flags = None
    if bounds is not None:
        q, flags = quarantine(q)
        grad, _ = quarantine(grad, flags)  # flags of both: either spoils the gradients that the query sends
        k, v = quarantine(k)[0], quarantine(v)[0]
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    key_config, query_config = configs or configuration(attention_backward, q.device, q.dtype, width)
    # Whole tiles of either kernel, so that both read base and dot without a mask.
    longest = max(key_config["BLOCK_QUERIES"], query_config["BLOCK_QUERIES"])
    row_length = triton.cdiv(num_queries, longest) * longest
    base, dot = (lse.new_empty(batch, num_heads, row_length) for _ in range(2))
    launch(
        row_kernel, (batch * num_heads, triton.cdiv(row_length, ROWS)), q, out, grad, lse, base, dot, flags, num_queries,
        row_length, num_heads, WIDTH=width, PACKED=flags is not None, BLOCK_QUERIES=ROWS,
        BLOCK_WIDTH=key_config["BLOCK_WIDTH"],
    )  # fmt: skip
    num_key_heads = k.shape[2]
    sources = tuple(laid_out(x, key_config["DESCRIPTORS"]) for x in (q, k, v, grad))  # once for both kernels
    of_group = None if flags is None else running_counts(flags.unflatten(1, (num_key_heads, -1)).amax(2))
    numbers = length, num_queries, offset, row_length, num_heads, num_heads // num_key_heads, window, softcap, scale
    masks: dict[str, Any] = {
        "WIDTH": width,
        "CAUSAL": causal,
        "WINDOW": window > 0,
        "PACKED": bounds is not None,
        "SOFTCAP": softcap > 0.0,
        "PART": num_queries < length,
    }
    launch(
        key_kernel, (batch * num_key_heads, triton.cdiv(length, key_config["BLOCK_KEYS"])), q,
        *_tile_sources(sources, key_config), base, dot, d_k, d_v, bounds, of_group, *numbers, **masks, **key_config,
    )  # fmt: skip
    launch(
        query_kernel, (batch * num_heads, triton.cdiv(num_queries, query_config["BLOCK_QUERIES"])), q,
        *_tile_sources(sources, query_config), base, dot, d_q, bounds, flags, *numbers, **masks, **query_config,
    )  # fmt: skip
    return d_q, d_k, d_v
