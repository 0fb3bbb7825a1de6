# mypy: allow-incomplete-defs, allow-untyped-defs
"""Distances in float64 of vectors and codes whose scores in float32 do not tell them apart."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exact_distance(z_ptr, codebook_ptr, vectors, codes, mask, width):
    """Compute float64 squared distances of pairs, broadcast over the shapes of `vectors` and `codes`; +inf where not `mask`."""
    distance = tl.zeros_like(vectors + codes).to(tl.float64)
    for feature in range(width):
        left = tl.load(z_ptr + vectors * width + feature, mask=mask, other=0.0).to(tl.float64)
        right = tl.load(codebook_ptr + codes * width + feature, mask=mask, other=0.0).to(tl.float64)
        distance += (left - right) * (left - right)
    return tl.where(mask, distance, float("inf"))
