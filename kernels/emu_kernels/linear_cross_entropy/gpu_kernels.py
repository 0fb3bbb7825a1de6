# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton kernels of the fused head and cross-entropy: the logits of a tile and their exponentials, and the gradient of the logits.

Legend: see `gpu.py`, which starts them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(
    source, first_row, first_feature, num_rows, width, DESCRIPTORS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Load a tile of (num_rows, width), zeros beyond it."""
    if DESCRIPTORS:
        tile = source.load([first_row, first_feature])
    else:
        base = source + first_row.to(tl.int64) * width + first_feature
        offset, feature = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_WIDTH)
        inside = (offset < num_rows - first_row)[:, None] & (feature < width - first_feature)[None, :]
        tile = tl.load(base + (offset[:, None] * width + feature[None, :]), mask=inside, other=0.0)
    return tile


@triton.jit
def logits_kernel(
    hidden_source, weight_source, exp_ptr, peak_ptr, total_ptr, best_ptr, num_rows, num_ids, width, exp_stride, num_tiles,
    softcap, SOFTCAP: tl.constexpr, STORE: tl.constexpr, ARGMAX: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IDS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    """Reduce logits: hidden (C, H), weight (V, H) -> peak, total, best (C, P) and, when STORE, exponentials (C, stride).

    The sources are tensor descriptors when DESCRIPTORS, else pointers.
    """
    num_row_blocks = tl.cdiv(num_rows, BLOCK_ROWS)
    # Programs that run together share tiles of the weight: GROUP_ROWS row blocks, then the next tile of ids.
    program = tl.program_id(0)
    group_size = GROUP_ROWS * num_tiles
    first_block = program // group_size * GROUP_ROWS
    blocks_in_group = tl.minimum(num_row_blocks - first_block, GROUP_ROWS)
    row_block = first_block + program % group_size % blocks_in_group
    tile = program % group_size // blocks_in_group

    logits = tl.zeros((BLOCK_ROWS, BLOCK_IDS), dtype=tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        hidden = _load(
            hidden_source, row_block * BLOCK_ROWS, start, num_rows, width, DESCRIPTORS, BLOCK_ROWS, BLOCK_WIDTH
        )
        weight = _load(weight_source, tile * BLOCK_IDS, start, num_ids, width, DESCRIPTORS, BLOCK_IDS, BLOCK_WIDTH)
        logits = tl.dot(hidden, weight.T, logits)

    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    ids = tile * BLOCK_IDS + tl.arange(0, BLOCK_IDS)
    in_rows = rows < num_rows
    slope = logits
    if SOFTCAP:
        # By exp, since Triton has no tanh of its own; an overflow gives 2 / inf = 0, hence 1.
        tanh = 1.0 - 2.0 / (tl.exp(logits * (2.0 / softcap)) + 1.0)
        logits = softcap * tanh
        slope = 1.0 - tanh * tanh
    # Ids beyond the slice were loaded as zero rows, whose logit 0 is not nothing; only the last tile has any.
    if (tile + 1) * BLOCK_IDS > num_ids:
        logits = tl.where((ids < num_ids)[None, :], logits, float("-inf"))
    # Against the tile's own maximum: that of the row is known only when all tiles are done, and would take a second pass.
    peak = tl.max(logits, axis=1)
    partial = rows.to(tl.int64) * num_tiles + tile
    if ARGMAX:
        # A row that is not a number has no maximum: its first such id, as torch has it.
        highest = (logits == peak[:, None]) | (logits != logits)
        best = tl.min(tl.where(highest, ids[None, :], 2147483647), axis=1)
        tl.store(best_ptr + partial, best, mask=in_rows)
    exponential = tl.exp2((logits - peak[:, None]) * LOG2_E)
    tl.store(peak_ptr + partial, peak, mask=in_rows)
    tl.store(total_ptr + partial, tl.sum(exponential, axis=1), mask=in_rows)  # before rounding to float16
    if STORE:
        if SOFTCAP:  # here, where the slope is at hand; the scale of the row comes later
            exponential *= slope
        # No mask over ids: the buffer has whole tiles, and exp(-inf) = 0 fills the rest of the last one.
        place = exp_ptr + rows.to(tl.int64)[:, None] * exp_stride + ids[None, :]
        tl.store(place, exponential.to(tl.float16), mask=in_rows[:, None])


@triton.jit
def scale_kernel(
    exp_ptr, gradient_ptr, peak_ptr, lse_ptr, on_softmax_ptr, on_target_ptr, picked_ptr, target_ptr, exp_stride,
    num_tiles, softcap, SOFTCAP: tl.constexpr, NUM_TILES: tl.constexpr, BLOCK_IDS: tl.constexpr,
):  # fmt: skip
    """Scale in place: exponentials (C, stride) float16 -> on_softmax * softmax - on_target * onehot(target), 16 bits."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.program_id(1) * NUM_TILES + tl.arange(0, NUM_TILES)
    ids = tiles[:, None] * BLOCK_IDS + tl.arange(0, BLOCK_IDS)[None, :]
    inside = (tiles < num_tiles)[:, None]
    peak = tl.load(peak_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=float("-inf"))
    factor = tl.load(on_softmax_ptr + row) * tl.exp2((peak - tl.load(lse_ptr + row)) * LOG2_E)  # (NUM_TILES,)
    on_target = tl.load(on_target_ptr + row)
    if SOFTCAP:  # the onehot part passes the cap's derivative too, and is not in the buffer
        tanh = tl.load(picked_ptr + row) / softcap
        on_target *= 1.0 - tanh * tanh
    gradient = tl.load(exp_ptr + row * exp_stride + ids, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    target = tl.load(target_ptr + row).to(tl.int32)
    gradient = tl.where(ids == target, gradient - on_target, gradient)
    tl.store(gradient_ptr + row * exp_stride + ids, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


@triton.jit
def target_kernel(
    hidden_ptr, weight_ptr, target_ptr, picked_ptr, num_ids, width, softcap, SOFTCAP: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    """Multiply hidden (C, H) with the row of weight (V, H) of each target (C,) -> picked (C,) float32, 0 for targets elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    inside = (target >= 0) & (target < num_ids)
    total = tl.zeros((BLOCK_WIDTH,), dtype=tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        feature = start + tl.arange(0, BLOCK_WIDTH)
        mask = (feature < width) & inside
        hidden = tl.load(hidden_ptr + row * width + feature, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + target.to(tl.int64) * width + feature, mask=mask, other=0.0).to(tl.float32)
        total += hidden * weight
    logit = tl.sum(total, axis=0)
    if SOFTCAP:  # by exp, as in `logits_kernel`
        logit = softcap * (1.0 - 2.0 / (tl.exp(logit * (2.0 / softcap)) + 1.0))
    tl.store(picked_ptr + row, logit)
