# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton attention, forward: online softmax over tiles of keys (FlashAttention-2, arXiv 2307.08691), packed rows and windows.

Each query sees one interval of keys, first..last; it follows from its document (`document_bounds`), the causal mask and the window,
and does not decrease along a row. A program walks only over the tiles of keys that its queries see, and applies a mask only in
tiles that some of them see in part. No host sync, memory linear in length. Legend: see `attention.py`; N = B * H.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
PRECISION = "tf32x3"  # of products of float32: three tensor-core products, about the accuracy of float32
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def key_interval(
    position, inside, bounds_ptr, row, length, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """First and last (exclusive) key that each query position sees; nothing for padding."""
    if PACKED:
        place = bounds_ptr + (row * length + position) * 2
        first = tl.load(place, mask=inside, other=0)
        last = tl.load(place + 1, mask=inside, other=0)
    else:
        first = position * 0
        last = first + length
    if CAUSAL:
        last = tl.minimum(last, position + 1)
    if WINDOW:
        first = tl.maximum(first, position - window + 1)
        if not CAUSAL:
            last = tl.minimum(last, position + window)
    return first, last


@triton.jit
def query_interval(
    position, inside, bounds_ptr, row, length, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """First and last (exclusive) query that sees each key position."""
    if PACKED:
        place = bounds_ptr + (row * length + position) * 2
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
def cap_scores(scores, softcap):
    """softcap * tanh(scores / softcap) and its derivative."""
    tanh = 1.0 - 2.0 / (tl.exp(scores * (2.0 / softcap)) + 1.0)
    return softcap * tanh, 1.0 - tanh * tanh


@triton.jit
def _attend(
    out, peak, total, q, k_ptr, v_ptr, k_stride, v_stride, first, last, start, stop, length, scale, softcap,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRODUCT: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Continue the softmax of a tile of queries over the tiles of keys in start..stop."""
    feature = tl.arange(0, BLOCK_WIDTH)
    for tile in range(start, stop, BLOCK_KEYS):
        keys = tile + tl.arange(0, BLOCK_KEYS)
        place = keys[:, None].to(tl.int64)
        inside = (keys[:, None] < length) & (feature[None, :] < WIDTH)
        k = tl.load(k_ptr + place * k_stride + feature[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, k.T, input_precision=PRODUCT)
        if SOFTCAP:
            scores, _ = cap_scores(scores * scale, softcap)
            scores *= LOG2_E
        else:
            scores *= scale * LOG2_E
        if MASKED:
            seen = (keys[None, :] >= first[:, None]) & (keys[None, :] < last[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(v_ptr + place * v_stride + feature[None, :], mask=inside, other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRODUCT)
        peak = new_peak
    return out, peak, total


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, bounds_ptr, q_row_stride, q_stride, q_head_stride, k_row_stride, k_stride,
    k_head_stride, v_row_stride, v_stride, v_head_stride, length, num_heads, group, window, softcap, scale, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """q (B, S, Hq, D), k and v (B, S, Hkv, D), bounds (B, S, 2) -> out (B, S, Hq, D), lse (B, Hq, S) float32."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # long causal rows first
    row = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    positions = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    inside = positions < length
    feature = tl.arange(0, BLOCK_WIDTH)
    first, last = key_interval(positions, inside, bounds_ptr, row, length, window, CAUSAL, WINDOW, PACKED)
    first = tl.where(inside, first, length)
    last = tl.where(inside, last, 0)
    start = tl.maximum(tl.min(first, axis=0), 0) // BLOCK_KEYS * BLOCK_KEYS
    stop = tl.minimum(tl.max(last, axis=0), length)
    full_start = tl.cdiv(tl.max(tl.where(inside, first, 0), axis=0), BLOCK_KEYS) * BLOCK_KEYS
    full_stop = tl.min(tl.where(inside, last, length), axis=0) // BLOCK_KEYS * BLOCK_KEYS
    full_start = tl.minimum(tl.maximum(full_start, start), tl.maximum(stop, start))
    full_stop = tl.maximum(full_stop, full_start)

    mask = inside[:, None] & (feature[None, :] < WIDTH)
    q_place = q_ptr + row * q_row_stride + head * q_head_stride + positions[:, None].to(tl.int64) * q_stride
    q = tl.load(q_place + feature[None, :], mask=mask, other=0.0)
    k_ptr += row * k_row_stride + head // group * k_head_stride
    v_ptr += row * v_row_stride + head // group * v_head_stride
    out = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), dtype=tl.float32)
    peak = tl.full((BLOCK_QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), dtype=tl.float32)
    if WINDOW or PACKED:
        out, peak, total = _attend(
            out, peak, total, q, k_ptr, v_ptr, k_stride, v_stride, first, last, start, full_start, length, scale, softcap,
            WIDTH, True, SOFTCAP, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
        )  # fmt: skip
    else:
        full_start = 0
    out, peak, total = _attend(
        out, peak, total, q, k_ptr, v_ptr, k_stride, v_stride, first, last, full_start, full_stop, length, scale,
        softcap, WIDTH, False, SOFTCAP, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip
    out, peak, total = _attend(
        out, peak, total, q, k_ptr, v_ptr, k_stride, v_stride, first, last, full_stop, stop, length, scale, softcap,
        WIDTH, True, SOFTCAP, PRODUCT, BLOCK_KEYS, BLOCK_WIDTH,
    )  # fmt: skip

    empty = total == 0.0
    out = out / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, 0.0, (peak + tl.log2(tl.where(empty, 1.0, total))) * LN_2)
    out_place = ((row * length + positions[:, None]) * num_heads + head) * WIDTH + feature[None, :]
    tl.store(out_ptr + out_place, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(lse_ptr + (row * num_heads + head) * length + positions, lse, mask=inside)


def forward_config(dtype: torch.dtype, width: int) -> dict[str, int]:
    """Block sizes of the forward for heads of `width` features."""
    block_width = max(triton.next_power_of_2(width), 16)
    if dtype == torch.float32:
        blocks = {"BLOCK_QUERIES": 64, "BLOCK_KEYS": 32, "num_warps": 4, "num_stages": 2}
    elif block_width <= 64:
        blocks = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64, "num_warps": 4, "num_stages": 3}
    elif block_width <= 128:
        blocks = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 128, "num_warps": 8, "num_stages": 2}
    else:
        blocks = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64, "num_warps": 8, "num_stages": 2}
    return blocks | {"BLOCK_WIDTH": block_width}


def document_bounds(q: Tensor, segment_ids: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """First and last (exclusive) position of each position's document, (B, S, 2) int32, or None; no host sync.

    Padding belongs to an empty document at its own place, which keeps the bounds in order along the row.
    """
    batch, length = q.shape[:2]
    position = torch.arange(length, device=q.device)
    if cu_seqlens is not None:
        offsets = torch.cat([cu_seqlens.long(), cu_seqlens.new_full((1,), length).long()])
        document = torch.searchsorted(offsets[:-1], position, right=True)
        first = offsets[document - 1]
        last = offsets[document]
        padding = position >= cu_seqlens[-1]
        bounds = torch.stack([torch.where(padding, position, first), torch.where(padding, position, last)], -1)[None]
        return bounds.int()
    if segment_ids is None:
        return None
    starts = torch.nn.functional.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    first = torch.where(starts, position, 0).cummax(1).values
    ends = torch.nn.functional.pad(starts[:, 1:], (0, 1), value=True)
    last = torch.where(ends, position + 1, length).flip(1).cummin(1).values.flip(1)
    padding = segment_ids == 0
    return torch.stack([torch.where(padding, position, first), torch.where(padding, position, last)], -1).int()


def check_strides(x: Tensor) -> Tensor:
    """x with its features side by side, which the kernels assume; other strides are free."""
    return x if x.stride(-1) == 1 else x.contiguous()


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
    config: dict[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `attention._forward_op`; float32 or 16 bits."""
    batch, length, num_heads, width = q.shape
    out = torch.empty((batch, length, num_heads, width), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, num_heads, length), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    q, k, v = check_strides(q), check_strides(k), check_strides(v)
    bounds = document_bounds(q, segment_ids, cu_seqlens)
    config = config or forward_config(q.dtype, width)
    grid = (triton.cdiv(length, config["BLOCK_QUERIES"]), batch * num_heads)
    forward_kernel[grid](
        q, k, v, out, lse, bounds, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], length, num_heads,
        num_heads // k.shape[2], window, softcap, scale, WIDTH=width, CAUSAL=causal, WINDOW=window > 0,
        PACKED=bounds is not None, SOFTCAP=softcap > 0.0, PRODUCT=PRECISION, **config,
    )  # fmt: skip
    return out, lse
