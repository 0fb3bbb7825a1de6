# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton attention, backward: keys and values in one kernel, queries in another; deterministic, memory linear in length.

The probabilities come back from the log-sum-exp of the forward, and D_i = out_i . grad_i replaces the softmax's own backward
(FlashAttention-2, arXiv 2307.08691, section 3.1). The kernel of keys walks over all query heads of its group. Legend: see
`attention.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.attention_triton import (
    LOG2_E,
    PRECISION,
    cap_scores,
    check_strides,
    document_bounds,
    key_interval,
    query_interval,
)


@triton.jit
def dot_kernel(
    out_ptr, grad_ptr, result_ptr, length, num_heads, WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    """out and grad (B, S, Hq, D) -> their dot products (B, Hq, S) float32."""
    row = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    positions = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    feature = tl.arange(0, BLOCK_WIDTH)
    mask = (positions < length)[:, None] & (feature < WIDTH)[None, :]
    place = ((row * length + positions[:, None]) * num_heads + head) * WIDTH + feature[None, :]
    out = tl.load(out_ptr + place, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
    result_place = (row * num_heads + head) * length + positions
    tl.store(result_ptr + result_place, tl.sum(out * grad, axis=1), mask=positions < length)


@triton.jit
def _accumulate_keys(
    d_k, d_v, k, v, keys, q_ptr, grad_ptr, lse_ptr, dot_ptr, bounds_ptr, row, q_stride, grad_stride, start, stop,
    length, window, softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr,
    SOFTCAP: tl.constexpr, PRODUCT: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Add the gradients that the queries start..stop of one head send to a tile of keys; tiles are (keys, queries)."""
    feature = tl.arange(0, BLOCK_WIDTH)
    for tile in range(start, stop, BLOCK_QUERIES):
        positions = tile + tl.arange(0, BLOCK_QUERIES)
        inside = positions < length
        mask = inside[:, None] & (feature < WIDTH)[None, :]
        place = positions[:, None].to(tl.int64)
        q = tl.load(q_ptr + place * q_stride + feature[None, :], mask=mask, other=0.0)
        grad = tl.load(grad_ptr + place * grad_stride + feature[None, :], mask=mask, other=0.0)
        lse = tl.load(lse_ptr + positions, mask=inside, other=float("inf"))
        dot = tl.load(dot_ptr + positions, mask=inside, other=0.0)
        scores = tl.dot(k, q.T, input_precision=PRODUCT)  # (keys, queries)
        slope = scores
        if SOFTCAP:
            scores, slope = cap_scores(scores * scale, softcap)
            weights = tl.exp2((scores - lse[None, :]) * LOG2_E)
        else:
            weights = tl.exp2(scores * (scale * LOG2_E) - (lse * LOG2_E)[None, :])
        first, last = key_interval(positions, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
        seen = (keys[:, None] >= first[None, :]) & (keys[:, None] < last[None, :]) & inside[None, :]
        weights = tl.where(seen, weights, 0.0)
        d_v = tl.dot(weights.to(grad.dtype), grad, d_v, input_precision=PRODUCT)
        d_scores = weights * (tl.dot(v, grad.T, input_precision=PRODUCT) - dot[None, :])
        if SOFTCAP:
            d_scores *= slope
        d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision=PRODUCT)
    return d_k, d_v


@triton.jit
def key_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, dot_ptr, d_k_ptr, d_v_ptr, bounds_ptr, q_row_stride, q_stride, q_head_stride,
    k_row_stride, k_stride, k_head_stride, v_row_stride, v_stride, v_head_stride, length, num_heads, group, window,
    softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v, (B, S, Hkv, D), from q, grad (B, S, Hq, D), lse and dot (B, Hq, S)."""
    num_key_heads = num_heads // group
    row = (tl.program_id(1) // num_key_heads).to(tl.int64)
    key_head = tl.program_id(1) % num_key_heads
    keys = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    inside = keys < length
    feature = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    first, last = query_interval(keys, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    start = tl.min(tl.where(inside, first, length), axis=0) // BLOCK_QUERIES * BLOCK_QUERIES
    start = tl.maximum(start, 0)
    stop = tl.minimum(tl.max(tl.where(inside, last, 0), axis=0), length)

    place = keys[:, None].to(tl.int64)
    k_place = k_ptr + row * k_row_stride + key_head * k_head_stride + place * k_stride
    v_place = v_ptr + row * v_row_stride + key_head * v_head_stride + place * v_stride
    k = tl.load(k_place + feature[None, :], mask=mask, other=0.0)
    v = tl.load(v_place + feature[None, :], mask=mask, other=0.0)
    d_k = tl.zeros((BLOCK_KEYS, BLOCK_WIDTH), dtype=tl.float32)
    d_v = tl.zeros((BLOCK_KEYS, BLOCK_WIDTH), dtype=tl.float32)
    for member in range(0, group):
        head = key_head * group + member
        head_q = q_ptr + row * q_row_stride + head * q_head_stride
        head_grad = grad_ptr + (row * length * num_heads + head) * WIDTH
        statistics = (row * num_heads + head) * length
        d_k, d_v = _accumulate_keys(
            d_k, d_v, k, v, keys, head_q, head_grad, lse_ptr + statistics, dot_ptr + statistics, bounds_ptr, row,
            q_stride, num_heads * WIDTH, start, stop, length, window, softcap, scale, WIDTH, CAUSAL, WINDOW,
            PACKED, SOFTCAP, PRODUCT, BLOCK_QUERIES, BLOCK_WIDTH,
        )  # fmt: skip
    out_place = ((row * length + place) * num_key_heads + key_head) * WIDTH + feature[None, :]
    tl.store(d_k_ptr + out_place, (d_k * scale).to(d_k_ptr.dtype.element_ty), mask=mask)
    tl.store(d_v_ptr + out_place, d_v.to(d_v_ptr.dtype.element_ty), mask=mask)


@triton.jit
def query_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, dot_ptr, d_q_ptr, bounds_ptr, q_row_stride, q_stride, q_head_stride,
    k_row_stride, k_stride, k_head_stride, v_row_stride, v_stride, v_head_stride, length, num_heads, group, window,
    softcap, scale, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of q, (B, S, Hq, D)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    positions = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    inside = positions < length
    feature = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    first, last = key_interval(positions, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    first = tl.where(inside, first, length)
    last = tl.where(inside, last, 0)
    start = tl.maximum(tl.min(first, axis=0), 0) // BLOCK_KEYS * BLOCK_KEYS
    stop = tl.minimum(tl.max(last, axis=0), length)

    place = positions[:, None].to(tl.int64)
    q_place = q_ptr + row * q_row_stride + head * q_head_stride + place * q_stride + feature[None, :]
    q = tl.load(q_place, mask=mask, other=0.0)
    grad_place = ((row * length + place) * num_heads + head) * WIDTH + feature[None, :]
    grad = tl.load(grad_ptr + grad_place, mask=mask, other=0.0)
    statistics = (row * num_heads + head) * length + positions
    lse = tl.load(lse_ptr + statistics, mask=inside, other=0.0)
    dot = tl.load(dot_ptr + statistics, mask=inside, other=0.0)
    k_ptr += row * k_row_stride + head // group * k_head_stride
    v_ptr += row * v_row_stride + head // group * v_head_stride
    d_q = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), dtype=tl.float32)
    for tile in range(start, stop, BLOCK_KEYS):
        keys = tile + tl.arange(0, BLOCK_KEYS)
        key_place = keys[:, None].to(tl.int64)
        key_mask = (keys < length)[:, None] & (feature < WIDTH)[None, :]
        k = tl.load(k_ptr + key_place * k_stride + feature[None, :], mask=key_mask, other=0.0)
        v = tl.load(v_ptr + key_place * v_stride + feature[None, :], mask=key_mask, other=0.0)
        scores = tl.dot(q, k.T, input_precision=PRODUCT)
        slope = scores
        if SOFTCAP:
            scores, slope = cap_scores(scores * scale, softcap)
            weights = tl.exp2((scores - lse[:, None]) * LOG2_E)
        else:
            weights = tl.exp2(scores * (scale * LOG2_E) - (lse * LOG2_E)[:, None])
        seen = (keys[None, :] >= first[:, None]) & (keys[None, :] < last[:, None])
        weights = tl.where(seen, weights, 0.0)
        d_scores = weights * (tl.dot(grad, v.T, input_precision=PRODUCT) - dot[:, None])
        if SOFTCAP:
            d_scores *= slope
        d_q = tl.dot(d_scores.to(k.dtype), k, d_q, input_precision=PRODUCT)
    tl.store(d_q_ptr + grad_place, (d_q * scale).to(d_q_ptr.dtype.element_ty), mask=mask)


def backward_configs(dtype: torch.dtype, width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Block sizes of the kernel of keys and of the kernel of queries for heads of `width` features."""
    block_width = max(triton.next_power_of_2(width), 16)
    if dtype == torch.float32:
        key = {"BLOCK_QUERIES": 32, "BLOCK_KEYS": 32, "num_warps": 4, "num_stages": 1}
        query = {"BLOCK_QUERIES": 32, "BLOCK_KEYS": 32, "num_warps": 4, "num_stages": 1}
    elif block_width <= 128:
        key = {"BLOCK_QUERIES": 32, "BLOCK_KEYS": 128, "num_warps": 8, "num_stages": 2}
        query = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64, "num_warps": 8, "num_stages": 2}
    else:
        key = {"BLOCK_QUERIES": 32, "BLOCK_KEYS": 64, "num_warps": 8, "num_stages": 1}
        query = {"BLOCK_QUERIES": 64, "BLOCK_KEYS": 32, "num_warps": 8, "num_stages": 1}
    return key | {"BLOCK_WIDTH": block_width}, query | {"BLOCK_WIDTH": block_width}


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
    configs: tuple[dict[str, int], dict[str, int]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `attention._backward_op`; float32 or 16 bits."""
    batch, length, num_heads, width = q.shape
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if d_q.numel() == 0:
        return d_q, d_k, d_v
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    q, k, v = check_strides(q), check_strides(k), check_strides(v)
    bounds = document_bounds(q, segment_ids, cu_seqlens)
    key_config, query_config = configs or backward_configs(q.dtype, width)
    dot = torch.empty_like(lse)
    dot_kernel[(triton.cdiv(length, 64), batch * num_heads)](
        out, grad, dot, length, num_heads, width, BLOCK_QUERIES=64, BLOCK_WIDTH=key_config["BLOCK_WIDTH"]
    )
    numbers = (
        bounds, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], length, num_heads, num_heads // k.shape[2], window, softcap, scale,
    )  # fmt: skip
    flags: dict[str, Any] = {
        "WIDTH": width,
        "PRODUCT": PRECISION,
        "CAUSAL": causal,
        "WINDOW": window > 0,
        "PACKED": bounds is not None,
        "SOFTCAP": softcap > 0.0,
    }
    key_grid = (triton.cdiv(length, key_config["BLOCK_KEYS"]), batch * k.shape[2])
    key_kernel[key_grid](q, k, v, grad, lse, dot, d_k, d_v, *numbers, **flags, **key_config)
    query_grid = (triton.cdiv(length, query_config["BLOCK_QUERIES"]), batch * num_heads)
    query_kernel[query_grid](q, k, v, grad, lse, dot, d_q, *numbers, **flags, **query_config)
    return d_q, d_k, d_v
