"""Bounds of the documents in packed rows: all that the Triton kernels know of them. Legend: see `emu_kernels.attention`."""

from __future__ import annotations

import torch
from torch import Tensor


def document_bounds(length: int, segment_ids: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor | None:
    """Find where the document of each position begins and ends (exclusive), (B, length, 2) int32, or None without documents.

    The same for all layers of a model: made once for a batch and handed to `attention`, it saves each of them some fifteen small launches
    on a GPU. No host wait; the values of `cu_seqlens` are clamped to the row. Padding belongs to an empty document at its own place,
    which keeps the bounds in order along the row.

    Args:
        length: positions of a row.
        segment_ids, cu_seqlens: see `attention`.
    """
    if cu_seqlens is not None:
        position = torch.arange(length, device=cu_seqlens.device)
        # Values are not checked on a GPU, which would stall it: none may lead beyond the row.
        offsets = torch.cat([cu_seqlens.long().clamp(0, length), cu_seqlens.new_full((1,), length).long()])
        document = torch.searchsorted(offsets.narrow(0, 0, cu_seqlens.shape[0]), position, right=True)
        first = offsets.index_select(0, (document - 1).clamp(min=0))
        last = offsets.index_select(0, document)
        padding = position >= cu_seqlens.select(0, -1)
        bounds = torch.stack([torch.where(padding, position, first), torch.where(padding, position, last)], -1)
        return bounds.int().unsqueeze(0)
    if segment_ids is None:
        return None
    position = torch.arange(length, device=segment_ids.device)
    starts = torch.nn.functional.pad(segment_ids.diff(dim=1) != 0, (1, 0), value=True)
    first = torch.where(starts, position, 0).cummax(1).values
    ends = torch.nn.functional.pad(starts, (-1, 1), value=True)
    last = torch.where(ends, position + 1, length).flip(1).cummin(1).values.flip(1)
    padding = segment_ids == 0
    return torch.stack([torch.where(padding, position, first), torch.where(padding, position, last)], -1).int()
