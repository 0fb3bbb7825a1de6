"""Attention over packed rows: causal or not, grouped-query, documents, sliding window, soft cap; memory linear in length.

Legend: B rows, S positions, Sq queries of them, Hq query heads, Hkv key and value heads (Hq a multiple of Hkv), D head width.

A document is a run of equal, non-zero `segment_ids`, or the span between two entries of `cu_seqlens`. With documents, a causal
mask and a window, each query sees one interval of keys; that interval is all that the implementations know of a mask.

What the options are for: Emu's own transformer is causal with `segment_ids`. The others serve models that are loaded into it:
`cu_seqlens` is how transformers and FlashAttention describe packed rows, `window` belongs to checkpoints with local layers (Mistral,
Gemma 3) and `softcap` to those of Gemma 2; towers that encode a whole picture are not causal. `query_offset` is for rows that ranks
share: each has the queries of its part and gathers the keys of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.attention.bounds import document_bounds
from emu_kernels.attention.op import choose_backend, forward_op, torch_attention
from emu_kernels.checks import (
    FLOATS,
    INTEGERS,
    check_like,
    check_not_empty,
    check_positive,
    check_shape,
    check_tensor,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bounds: Tensor | None = None,
    query_offset: int | None = None,
) -> Tensor:
    """Attend from each position to the positions of its own document, differentiable in q, k and v.

    Padding positions (segment 0, or beyond the last entry of `cu_seqlens`) attend to nothing: their output and gradients are
    zero. On CPU the products run in the dtype of the inputs, float64 included. The first derivative only.

    Args:
        q: queries, (B, S, Hq, D); with `query_offset` (B, Sq, Hq, D).
        k: keys, (B, S, Hkv, D), same dtype and device.
        v: values, (B, S, Hkv, D).
        causal: position i sees no position after i.
        segment_ids: (B, S), 0 for padding; each run of equal ids is a document.
        cu_seqlens: offsets of the documents in the one row, (n + 1,) int32, increasing from 0; needs B = 1. Its values are
            checked on CPU only, since reading them would stall a GPU.
        window: position i sees j only if |i - j| < window.
        softcap: scores become `softcap * tanh(scores / softcap)`.
        scale: factor of the scores before the soft cap, D ** -0.5 by default.
        bounds: `document_bounds` of the documents that are given, (B, S, 2) int32, for the layers of a model to share.
        query_offset: the position at which the first query stands, the others behind it; None for queries of all positions.

    Returns:
        (B, S, Hq, D), dtype of q; with `query_offset` (B, Sq, Hq, D).

    Raises:
        ValueError: a shape, device or number does not fit, or both `segment_ids` and `cu_seqlens` are given.
        TypeError: a dtype is not supported.
    """
    _check_heads(q, k, v, query_offset)
    _check_documents(k, segment_ids, cu_seqlens, bounds)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the position itself), got {window}")
    if softcap is not None:
        check_positive("softcap", softcap)
    if scale is not None:
        check_positive("scale", scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.device.type != "cpu":
        packed = segment_ids is not None or cu_seqlens is not None or query_offset is not None
        backend = choose_backend(q, packed, window, softcap)
        if backend != "triton":
            return torch_attention(backend, q, k, v, causal, scale)
    if bounds is None and q.is_cuda:
        bounds = document_bounds(k.shape[1], segment_ids, cu_seqlens)  # here, so that the backward has it too
    options = causal, window or 0, float(softcap or 0.0), scale, bounds, query_offset or 0
    out, _ = forward_op(q, k, v, segment_ids, cu_seqlens, *options)
    return out


def _check_heads(q: Tensor, k: Tensor, v: Tensor, query_offset: int | None) -> None:
    check_tensor("q", q, "(B, S, Hq, D)", 4, FLOATS)
    check_tensor("k", k, "(B, S, Hkv, D)", 4, FLOATS)
    check_tensor("v", v, "(B, S, Hkv, D)", 4, FLOATS)
    check_not_empty("q", q, 2, "heads")
    check_not_empty("q", q, 3, "features")
    check_not_empty("k", k, 2, "heads")
    batch, length, num_heads, width = q.shape
    if query_offset is not None:
        if not 0 <= query_offset <= k.shape[1] - length:
            raise ValueError(
                f"query_offset is {query_offset}; {length} queries in a row of {k.shape[1]} keys must begin at "
                f"0 to {k.shape[1] - length}"
            )
        length = k.shape[1]
    check_shape("k", k, (batch, length, k.shape[2], width), "q")
    check_shape("v", v, tuple(k.shape), "k")
    if num_heads % k.shape[2]:
        raise ValueError(f"q has {num_heads} heads, which is not a multiple of the {k.shape[2]} heads of k and v")
    check_like("k", k, "q", q, same_dtype=True)
    check_like("v", v, "q", q, same_dtype=True)


def _check_documents(k: Tensor, segment_ids: Tensor | None, cu_seqlens: Tensor | None, bounds: Tensor | None) -> None:
    if segment_ids is not None and cu_seqlens is not None:
        raise ValueError("segment_ids and cu_seqlens both describe the documents; give one of them")
    if segment_ids is not None:
        check_tensor("segment_ids", segment_ids, "(B, S)", 2, INTEGERS)
        check_shape("segment_ids", segment_ids, tuple(k.shape[:2]), "k")
        check_like("segment_ids", segment_ids, "k", k)
    if cu_seqlens is not None:
        check_tensor("cu_seqlens", cu_seqlens, "(n + 1,)", 1, (torch.int32,))
        check_not_empty("cu_seqlens", cu_seqlens, 0, "entries")
        check_like("cu_seqlens", cu_seqlens, "k", k)
        if k.shape[0] != 1:
            raise ValueError(f"cu_seqlens describes one packed row, but q has {k.shape[0]} rows; use segment_ids")
    if bounds is not None:
        if segment_ids is None and cu_seqlens is None:
            raise ValueError(
                "bounds are given without documents; give the segment_ids or cu_seqlens that they are made of, too"
            )
        check_tensor("bounds", bounds, "(B, S, 2)", 3, (torch.int32,))
        check_shape("bounds", bounds, (*k.shape[:2], 2), "k")
        check_like("bounds", bounds, "k", k)
