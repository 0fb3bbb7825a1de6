# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton sampler: guidance, temperature, top-k and top-p by bisection in registers, then the exponential race.

Legend: R guidance rows, B rows, K candidates. The same distribution and noise as the CPU path, in float32. A filter finds its
threshold by building the bits of a float from the top: 31 passes over numbers that stay in registers, without a sort. Rows of
more than MAX_FILTER candidates are filtered by torch's sort and only race here. The race runs in blocks of RACE_BLOCK candidates on as
many multiprocessors, for the noise of one row keeps one busy for as long as the filter does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import launch
from emu_kernels.guided_sample.cpu import inverse

MAX_FILTER = 32768
RACE_BLOCK = 2048


@triton.jit
def filter_kernel(
    logits_ptr, result_ptr, num_rows, num_candidates, guide_stride, row_stride, scale, part_scale, inverse_temperature,
    top_k, top_p, GUIDES: tl.constexpr, GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Filter logits (R, B, K) -> unnormalised probabilities (B, K) float32, 1 for the most likely; scores when GREEDY."""
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < num_candidates
    # Weights stay in registers from here to the store: one read of the logits, whatever the filters.
    source = logits_ptr + row.to(tl.int64) * row_stride + offsets
    x = tl.load(source, mask=inside, other=float("-inf")).to(tl.float32)
    if GUIDES > 1:
        without = tl.load(source + guide_stride, mask=inside, other=float("-inf")).to(tl.float32)
        if GUIDES == 2:
            x = without + scale * (x - without)
        else:
            part = tl.load(source + 2 * guide_stride, mask=inside, other=float("-inf")).to(tl.float32)
            x = without + part_scale * (part - without) + scale * (x - part)
    x = tl.where(x == x, x, float("-inf"))  # not a number is never drawn
    x = tl.where(inside, x, float("-inf"))
    if not GREEDY:
        peak = tl.max(x, axis=0)
        below = (tl.where(peak == float("-inf"), 0.0, peak) - x) * inverse_temperature  # 0 for the most likely
        # Several infinite scores are equal, and inf - inf is not a number.
        below = tl.where(x == float("inf"), 0.0, below)
        if TOP_K:
            # The largest number that fewer than top_k candidates are strictly below: the top_k-th smallest.
            # Bits of a float that is not negative are in the order of their integers, so each bit halves what is left.
            threshold = tl.full((), 0, dtype=tl.int32)
            bit = tl.full((), 0x40000000, dtype=tl.int32)  # the sign bit is never set
            while bit > 0:
                limit = (threshold | bit).to(tl.float32, bitcast=True)
                count = tl.sum(tl.where(below >= limit, 0, 1), axis=0)
                # With exactly top_k below the limit, the number before it parts them from the others: no need for more bits.
                found = tl.where(count == top_k, 1, 0)
                threshold = tl.where(count <= top_k, (threshold | bit) - found, threshold)
                bit = tl.where(count == top_k, 0, bit >> 1)
            below = tl.where(below <= threshold.to(tl.float32, bitcast=True), below, float("inf"))
        x = tl.exp(-below)
        if TOP_P:
            # The largest number such that candidates of at least this probability reach the mass.
            wanted = top_p * tl.sum(x, axis=0)
            threshold = tl.full((), 0, dtype=tl.int32)
            bit = tl.full((), 0x20000000, dtype=tl.int32)  # weights are at most 1, whose bits are 0x3F800000
            for _ in range(30):
                limit = (threshold | bit).to(tl.float32, bitcast=True)
                mass = tl.sum(tl.where(x >= limit, x, 0.0), axis=0)
                threshold = tl.where(mass >= wanted, threshold | bit, threshold)
                bit = bit >> 1
            x = tl.where(x >= threshold.to(tl.float32, bitcast=True), x, 0.0)
    tl.store(result_ptr + row.to(tl.int64) * num_candidates + offsets, x, mask=inside)


@triton.jit
def _exponential(words):
    """Compute -log1p(-u) with u = (word + 1/2) / 2**32, in full relative precision near zero."""
    u = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    left = 1.0 - u
    # log1p by Kahan's correction, since Triton has none of its own: log(left) belongs to `lost`, and u / lost brings it back to u.
    lost = 1.0 - left  # what 1 - u really subtracted
    log = -tl.log(left)
    return tl.where(lost == 0.0, u, log * (u / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit
def race_kernel(
    weight_ptr, seed_ptr, stream_ptr, position_ptr, draw, arrival_ptr, place_ptr, num_candidates, GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Race: weights (B, K) float32, keys (B,) int64 -> of each block of candidates the first arrival, (B, blocks): 1 / time and offset.

    When GREEDY the largest weight counts as the first arrival.
    """
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight_ptr + row * num_candidates + offsets, mask=offsets < num_candidates, other=float("-inf"))
    if not GREEDY:
        seed = tl.load(seed_ptr + row)
        stream = tl.load(stream_ptr + row).to(tl.uint32)
        position = tl.load(position_ptr + row).to(tl.uint32)
        counter = (tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)).to(tl.uint32)
        zero = counter * 0
        w0, w1, w2, w3 = tl.philox(seed, counter, position + zero, stream + zero, zero + draw)
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # word i % 4 of counter i // 4
        x = x / _exponential(words)  # 1 / time: the largest is the first, and a weight of zero never arrives
    arrival = tl.max(x, axis=0)
    first_place = tl.min(tl.where(x == arrival, offsets, 2147483647), axis=0)
    block = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(arrival_ptr + block, arrival)
    tl.store(place_ptr + block, first_place.to(tl.int64))


@triton.jit
def finish_kernel(arrival_ptr, place_ptr, result_ptr, num_blocks, BLOCK: tl.constexpr):
    """Finish: first arrivals of blocks (B, blocks) -> offset of the first of all, the lowest on ties, (B,) int64."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    arrival = tl.load(arrival_ptr + row * num_blocks + block, mask=block < num_blocks, other=float("-inf"))
    first_block = tl.min(tl.where(arrival == tl.max(arrival, axis=0), block, BLOCK), axis=0)
    tl.store(result_ptr + row, tl.load(place_ptr + row * num_blocks + first_block))


def guided_sample_triton(
    logits: Tensor,
    scale: float,
    part_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: Tensor,
    stream: Tensor,
    position: Tensor,
    draw: int,
) -> Tensor:
    """See `guided_sample`; no host sync, fixed launches, so that it can be captured in a graph."""
    num_guides, num_rows, num_candidates = logits.shape
    if num_rows == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    logits = logits.detach()
    logits = logits if logits.stride(2) == 1 else logits.contiguous()
    greedy = temperature == 0.0
    if num_candidates <= MAX_FILTER:
        weights = torch.empty(num_rows, num_candidates, dtype=torch.float32, device=logits.device)
        block = max(triton.next_power_of_2(num_candidates), 32)
        launch(
            filter_kernel, (num_rows,), logits, logits, weights, num_rows, num_candidates, logits.stride(0), logits.stride(1),
            scale, part_scale, 1.0 if greedy else inverse(temperature), top_k, top_p, GUIDES=num_guides, GREEDY=greedy, TOP_K=top_k > 0,
            TOP_P=top_p < 1.0, BLOCK=block, num_warps=filter_warps(block),
        )  # fmt: skip
    else:
        weights = _filter_long(logits, scale, part_scale, temperature, top_k, top_p)
    block = min(max(triton.next_power_of_2(num_candidates), 32), RACE_BLOCK)
    num_blocks = triton.cdiv(num_candidates, block)
    arrivals = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=logits.device)
    places = torch.empty(num_rows, num_blocks, dtype=torch.int64, device=logits.device)
    launch(
        race_kernel, (num_rows, num_blocks), logits, weights, seed.contiguous(), stream.contiguous(),
        position.contiguous(), draw, arrivals, places, num_candidates, GREEDY=greedy, BLOCK=block, num_warps=4,
    )  # fmt: skip
    if num_blocks == 1:  # known from the shape, so that a captured graph has the same launches for every input
        return places[:, 0]
    result = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    launch(
        finish_kernel, (num_rows,), logits, arrivals, places, result, num_blocks,
        BLOCK=triton.next_power_of_2(num_blocks), num_warps=1,
    )  # fmt: skip
    return result


def filter_warps(block: int) -> int:
    """Return the warps that keep a row of `block` candidates in registers."""
    return min(max(block // 1024, 1), 16)


def _filter_long(
    logits: Tensor, scale: float, part_scale: float, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Do what `filter_kernel` does, in torch, for rows of any length: (R, B, K) -> (B, K)."""
    rows = logits.float()
    x = rows[0]
    if rows.shape[0] == 2:
        x = rows[1] + scale * (rows[0] - rows[1])
    elif rows.shape[0] == 3:
        x = rows[1] + part_scale * (rows[2] - rows[1]) + scale * (rows[0] - rows[2])
    x = torch.where(x.isnan(), -torch.inf, x)
    if temperature == 0.0:
        return x.contiguous()
    peak = x.amax(1, keepdim=True)
    below = (x - torch.where(peak == -torch.inf, 0.0, peak)) * inverse(temperature)
    x = torch.where(x == torch.inf, 0.0, below)
    if top_k:
        x = torch.where(x < x.topk(top_k, dim=1).values[:, -1:], -torch.inf, x)
    x = x.exp()
    if top_p < 1.0:
        ranked = x.sort(dim=1, descending=True).values
        mass = ranked.cumsum(1)
        num_kept = (mass - ranked < top_p * mass[:, -1:]).sum(1, keepdim=True)
        x = torch.where(x < ranked.gather(1, num_kept - 1), 0.0, x)
    return x.contiguous()
