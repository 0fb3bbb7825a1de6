# mypy: allow-incomplete-defs, allow-untyped-defs
"""Numbers that are not finite stay in their document: copies of the inputs without them, and where they were.

A tile holds positions of several documents, and 0 * NaN is NaN: in a product over the tile the weight zero does not keep a neighbour's
NaN or infinity out. So packed rows are computed from copies in which such positions are zero, and the results that depend on
them are set to NaN at the end, by intervals of positions. Legend: see `emu_kernels.attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import launch

BLOCK = 64


@triton.jit
def quarantine_kernel(
    source_ptr, clean_ptr, bad_ptr, length, num_heads, row_stride, position_stride, head_stride, feature_stride,
    WIDTH: tl.constexpr, COPY: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Clean x (B, S, H, D): a copy with zeros at positions that are not finite, and their flags (B, H, S), to which ADD adds."""
    row = (tl.program_id(0) // num_heads).to(tl.int64)
    head = tl.program_id(0) % num_heads
    positions = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, BLOCK_WIDTH)
    inside = positions < length
    mask = inside[:, None] & (feature < WIDTH)[None, :]
    place = row * row_stride + positions.to(tl.int64)[:, None] * position_stride + head * head_stride
    x = tl.load(source_ptr + place + feature[None, :] * feature_stride, mask=mask, other=0.0)
    bad = tl.max(tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1), axis=1)  # comparisons with NaN are false
    flag = bad_ptr + (row * num_heads + head) * length + positions
    if COPY:
        result = ((row * length + positions[:, None]) * num_heads + head) * WIDTH + feature[None, :]
        tl.store(clean_ptr + result, tl.where(bad[:, None] > 0, 0.0, x).to(x.dtype), mask=mask)
    if ADD:  # one set of flags for two tensors; each program owns its positions, so no atomics
        bad = tl.maximum(bad, tl.load(flag, mask=inside, other=0))
    tl.store(flag, bad, mask=inside)


def quarantine(x: Tensor, flags: Tensor | None = None, copy: bool = True) -> tuple[Tensor, Tensor]:
    """Return x (B, S, H, D) with zeros at the positions of a head that are not finite, and flags (B, H, S) int32 of those positions.

    Args:
        x: any strides.
        flags: those of another tensor, to which the positions are added.
        copy: False returns x itself.
    """
    batch, length, num_heads, width = x.shape
    clean = torch.empty(x.shape, dtype=x.dtype, device=x.device) if copy else x
    found = x.new_empty(batch, num_heads, length, dtype=torch.int32) if flags is None else flags
    # Strides as they are: a view of one projection would otherwise be copied twice.
    launch(
        quarantine_kernel, (batch * num_heads, triton.cdiv(length, BLOCK)), x, x, clean, found, length, num_heads,
        *x.stride(), WIDTH=width, COPY=copy, ADD=flags is not None, BLOCK=BLOCK,
        BLOCK_WIDTH=max(triton.next_power_of_2(width), 16),
    )  # fmt: skip
    return clean, found


def running_counts(flags: Tensor) -> Tensor:
    """Count the flags (B, H, S) before each position, (B, H, S + 1): the number in an interval is a difference of two."""
    return torch.nn.functional.pad(flags.cumsum(-1, dtype=torch.int32), (1, 0))


@triton.jit
def any_in(counts, first, last, inside):
    """Tell whether an interval first..last (exclusive) of positions holds a flag; `counts` points to those of one head."""
    found = tl.load(counts + last, mask=inside, other=0) - tl.load(counts + first, mask=inside, other=0)
    return (found > 0) & (first < last)
