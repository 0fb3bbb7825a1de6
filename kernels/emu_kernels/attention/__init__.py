"""Attention over packed rows: causal or not, grouped-query, documents, sliding window, soft cap; memory linear in length.

Legend: B rows, S positions, Hq query heads, Hkv key and value heads (Hq a multiple of Hkv), D head width.

A document is a run of equal, non-zero `segment_ids`, or the span between two entries of `cu_seqlens`. With documents, a causal
mask and a window, each query sees one interval of keys; that interval is all that the implementations know of a mask.

What the options are for: Emu's own transformer is causal with `segment_ids`. The others serve models that are loaded into it:
`cu_seqlens` is how transformers and FlashAttention describe packed rows, `window` belongs to checkpoints with local layers (Mistral,
Gemma 3) and `softcap` to those of Gemma 2; towers that encode a whole picture are not causal.
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
) -> Tensor:
    """Attend from each position to the positions of its own document, differentiable in q, k and v.

    Padding positions (segment 0, or beyond the last entry of `cu_seqlens`) attend to nothing: their output and gradients are
    zero. On CPU the products run in the dtype of the inputs, float64 included. The first derivative only.

    Args:
        q: queries, (B, S, Hq, D).
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

    Returns:
        (B, S, Hq, D), dtype of q.

    Raises:
        ValueError: a shape, device or number does not fit, or both `segment_ids` and `cu_seqlens` are given.
        TypeError: a dtype is not supported.
    """
    _check_heads(q, k, v)
    _check_documents(q, segment_ids, cu_seqlens, bounds)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the position itself), got {window}")
    if softcap is not None:
        check_positive("softcap", softcap)
    if scale is not None:
        check_positive("scale", scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.device.type != "cpu":
        backend = choose_backend(q, segment_ids is not None or cu_seqlens is not None, window, softcap)
        if backend != "triton":
            return torch_attention(backend, q, k, v, causal, scale)
    if bounds is None and q.is_cuda:
        bounds = document_bounds(q.shape[1], segment_ids, cu_seqlens)  # here, so that the backward has it too
    out, _ = forward_op(q, k, v, segment_ids, cu_seqlens, causal, window or 0, float(softcap or 0.0), scale, bounds)
    return out


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_tensor("q", q, "(B, S, Hq, D)", 4, FLOATS)
    check_tensor("k", k, "(B, S, Hkv, D)", 4, FLOATS)
    check_tensor("v", v, "(B, S, Hkv, D)", 4, FLOATS)
    check_not_empty("q", q, 2, "heads")
    check_not_empty("q", q, 3, "features")
    check_not_empty("k", k, 2, "heads")
    batch, length, num_heads, width = q.shape
    check_shape("k", k, (batch, length, k.shape[2], width), "q")
    check_shape("v", v, tuple(k.shape), "k")
    if num_heads % k.shape[2]:
        raise ValueError(f"q has {num_heads} heads, which is not a multiple of the {k.shape[2]} heads of k and v")
    check_like("k", k, "q", q, same_dtype=True)
    check_like("v", v, "q", q, same_dtype=True)


def _check_documents(q: Tensor, segment_ids: Tensor | None, cu_seqlens: Tensor | None, bounds: Tensor | None) -> None:
    if segment_ids is not None and cu_seqlens is not None:
        raise ValueError("segment_ids and cu_seqlens both describe the documents; give one of them")
    if segment_ids is not None:
        check_tensor("segment_ids", segment_ids, "(B, S)", 2, INTEGERS)
        check_shape("segment_ids", segment_ids, tuple(q.shape[:2]), "q")
        check_like("segment_ids", segment_ids, "q", q)
    if cu_seqlens is not None:
        check_tensor("cu_seqlens", cu_seqlens, "(n + 1,)", 1, (torch.int32,))
        check_not_empty("cu_seqlens", cu_seqlens, 0, "entries")
        check_like("cu_seqlens", cu_seqlens, "q", q)
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens describes one packed row, but q has {q.shape[0]} rows; use segment_ids")
    if bounds is not None:
        if segment_ids is None and cu_seqlens is None:
            raise ValueError(
                "bounds are given without documents; give the segment_ids or cu_seqlens that they are made of, too"
            )
        check_tensor("bounds", bounds, "(B, S, 2)", 3, (torch.int32,))
        check_shape("bounds", bounds, (*q.shape[:2], 2), "q")
        check_like("bounds", bounds, "q", q)
