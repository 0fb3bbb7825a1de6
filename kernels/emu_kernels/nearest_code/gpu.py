# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton search of the nearest codebook entry on the tensor cores; doubtful vectors are searched again in float64.

Legend: N vectors, K codes, D features, P packed numbers of a code. A product of tf32 keeps 11 bits of each factor, so a number is split in
two of them: z.e is z'.e' + z''.e' + z'.e'', three products of D features, which lie side by side in one row of P numbers, followed by the
three parts of |e|^2 / 2 against ones. One product of such rows is then the score |e|^2 / 2 - z.e, about as exact as float32, and there
is nothing left to do but to compare. `pack_kernel` writes the rows of the codes once.

A program owns BLOCK_VECTORS vectors and walks over the codes. Each of its lanes, a vector and a code's place modulo LANES, keeps the best
and the second best tile that it has seen. The score is rounded, so the winner is certain only if no other lane and no second tile comes
within the rounding bound; for each uncertain vector (1 in 40 of normal ones among 32,768 codes of 4 features) what is within the bound
is compared in float64, with plain differences.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import launch
from emu_kernels.nearest_code.gpu_exact import exact_distance
from emu_kernels.nearest_code.gpu_wide import nearest_code_wide

TABLE_FROM_WIDTH = 42
"""Features from which a table of scores is made: 42 take more than 128 packed numbers."""
PACK_ROWS = 64
LANES = tl.constexpr(8)
"""Columns of a tile of scores that threads hold side by side; all else of a tile is compared within a thread."""
FAR = tl.constexpr(2.0**127)
"""Score of a place beyond the codebook."""
LEAST_BOUND = tl.constexpr(2.0**-120)
"""Scores of less are not told apart: they may have lost bits below the normal numbers, or all."""


@triton.jit
def _upper(x):
    """Round float32 to the 11 bits of tf32; what is left fits into 11 more."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _split(source_ptr, rows, num_rows, width, place):
    """Load (rows, P) of x (num_rows, width), each number three times over: (x, its 11 bits, the next 11 bits)."""
    feature = place // 3
    mask = (rows < num_rows)[:, None] & (feature < width)[None, :]
    x = tl.load(source_ptr + rows.to(tl.int64)[:, None] * width + feature[None, :], mask=mask, other=0.0).to(tl.float32)
    upper = _upper(x)
    return x, upper, _upper(x - upper)


@triton.jit
def pack_kernel(
    codebook_ptr, packed_ptr, longest_ptr, num_codes, width, PACKED_WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Pack codes (K, D) -> (whole tiles, P) float32, and the largest |e|^2 / 2 in longest (1,), which is 0 before."""
    codes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, PACKED_WIDTH)
    x, upper, lower = _split(codebook_ptr, codes, num_codes, width, place)
    part = (place % 3)[None, :]
    half_norm = 0.5 * tl.sum(tl.where(part == 0, x * x, 0.0), axis=1)
    tl.atomic_max(longest_ptr, tl.max(half_norm, axis=0))
    half_norm = tl.where(codes < num_codes, half_norm, FAR)
    first = _upper(half_norm)
    second = _upper(half_norm - first)
    norm = (place - 3 * width)[None, :]
    packed = tl.where(part == 2, lower, upper)
    packed = tl.where(norm == 0, first[:, None], packed)
    packed = tl.where(norm == 1, second[:, None], packed)
    packed = tl.where(norm == 2, (half_norm - first - second)[:, None], packed)
    tl.store(packed_ptr + codes.to(tl.int64)[:, None] * PACKED_WIDTH + place[None, :], packed)


@triton.jit
def _nearest_member(
    z_ptr, codebook_ptr, vector, lanes_first, close, num_codes, WIDTH: tl.constexpr, MEMBERS: tl.constexpr
):  # fmt: skip
    """Find the nearest code of one vector in float64 among the members of the tiles of its `close` lanes, the lowest on ties."""
    members = lanes_first[:, None] + LANES * tl.arange(0, MEMBERS)[None, :]
    vectors = tl.zeros((LANES, 1), dtype=tl.int64) + vector
    distance = exact_distance(z_ptr, codebook_ptr, vectors, members, close[:, None] & (members < num_codes), WIDTH)
    least = tl.min(tl.min(distance, axis=1), axis=0)
    return tl.min(tl.min(tl.where(distance == least, members, 2147483647), axis=1), axis=0)


@triton.jit
def _search_again(
    z_ptr, codebook_ptr, vector, bound, num_codes, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    """Find the code of least float64 distance to one vector among all whose score may be within the bound, the lowest on ties."""
    least = tl.full((BLOCK,), float("inf"), dtype=tl.float64)
    nearest = tl.full((BLOCK,), 2147483647, dtype=tl.int32)
    vectors = tl.zeros((BLOCK,), dtype=tl.int64) + vector
    feature = tl.arange(0, BLOCK_WIDTH)
    x = tl.load(z_ptr + vector * WIDTH + feature, mask=feature < WIDTH, other=0.0).to(tl.float32)
    for first in range(0, num_codes, BLOCK):
        codes = first + tl.arange(0, BLOCK)
        inside = codes < num_codes
        mask = inside[:, None] & (feature < WIDTH)[None, :]
        e = tl.load(codebook_ptr + codes.to(tl.int64)[:, None] * WIDTH + feature[None, :], mask=mask, other=0.0)
        e = e.to(tl.float32)
        close = inside & (tl.sum(e * (0.5 * e - x[None, :]), axis=1) <= bound)
        if tl.max(close.to(tl.int32), axis=0) > 0:
            distance = exact_distance(z_ptr, codebook_ptr, vectors, codes, close, WIDTH)
            nearest = tl.where(distance < least, codes, nearest)
            least = tl.minimum(distance, least)
    return tl.min(tl.where(least == tl.min(least, axis=0), nearest, 2147483647), axis=0)


@triton.jit
def nearest_code_kernel(
    z_ptr, codebook_ptr, packed_ptr, longest_ptr, result_ptr, num_vectors, num_codes, slack, WIDTH: tl.constexpr,
    PACKED_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_VECTORS: tl.constexpr, BLOCK_CODES: tl.constexpr,
    BLOCK_EXACT: tl.constexpr,
):  # fmt: skip
    """Search: z (N, D), codebook (K, D), packed (whole tiles, P), longest (1,) = max |e|^2 / 2 -> result (N,) int64."""
    vectors = tl.program_id(0).to(tl.int64) * BLOCK_VECTORS + tl.arange(0, BLOCK_VECTORS)
    present = vectors < num_vectors
    place = tl.arange(0, PACKED_WIDTH)
    x, upper, lower = _split(z_ptr, vectors, num_vectors, WIDTH, place)
    part = (place % 3)[None, :]
    norm = tl.sum(tl.where(part == 0, x * x, 0.0), axis=1)  # (BLOCK_VECTORS,)
    # Ones for the parts of the norm, and beyond them, where codes are zero.
    factors = tl.where((place >= 3 * WIDTH)[None, :], 1.0, -tl.where(part == 1, lower, upper))

    lanes = tl.arange(0, LANES)
    best = tl.full((BLOCK_VECTORS, LANES), float("inf"), dtype=tl.float32)
    second = tl.full((BLOCK_VECTORS, LANES), float("inf"), dtype=tl.float32)
    best_first = tl.zeros((BLOCK_VECTORS, LANES), dtype=tl.int32)
    for first in range(0, num_codes, BLOCK_CODES):
        codes = first + tl.arange(0, BLOCK_CODES)
        packed = tl.load(packed_ptr + codes[:, None] * PACKED_WIDTH + place[None, :])
        scores = tl.dot(factors, packed.T, input_precision="tf32")
        least = tl.min(tl.reshape(scores, (BLOCK_VECTORS, BLOCK_CODES // LANES, LANES)), axis=1)
        # Before `best` changes: the loser of the two is the candidate for second place.
        second = tl.minimum(second, tl.maximum(best, least))
        best_first = tl.where(least < best, first, best_first)
        best = tl.minimum(best, least)

    # Of the longest code: one bound for all, a little wide for the short ones.
    code_norm = tl.sqrt(2.0 * tl.load(longest_ptr))
    bound = tl.min(best, axis=1) + slack * code_norm * (tl.sqrt(norm) + code_norm) + LEAST_BOUND  # (BLOCK_VECTORS,)
    num_close = tl.sum((best <= bound[:, None]).to(tl.int32) + (second <= bound[:, None]).to(tl.int32), axis=1)
    lane = tl.argmin(best, axis=1)
    tile = tl.sum(tl.where(lanes[None, :] == lane[:, None], best_first, 0), axis=1)
    # The lane remembers its tile alone; which of its members won is found by exact distances, and ties go to the lowest.
    members = (tile + lane)[:, None] + LANES * tl.arange(0, BLOCK_CODES // LANES)[None, :]
    inside = present[:, None] & (members < num_codes)
    distance = exact_distance(z_ptr, codebook_ptr, vectors[:, None], members, inside, WIDTH)
    winners = (distance == tl.min(distance, axis=1)[:, None]) & inside
    result = tl.min(tl.where(winners, members, num_codes - 1), axis=1)  # some code where a row is not a number

    # Uncertain vectors are few: one after the other, all threads of the program on the distances of one. Mostly it is known which tiles
    # come into question; of a lane with two such tiles the second is not.
    row = tl.arange(0, BLOCK_VECTORS)
    certain = (num_close <= 1) | (vectors >= num_vectors)
    next_row = tl.min(tl.where(certain, BLOCK_VECTORS, row), axis=0)
    while next_row < BLOCK_VECTORS:
        vector = tl.program_id(0).to(tl.int64) * BLOCK_VECTORS + next_row
        own = row == next_row
        own_bound = tl.max(tl.where(own, bound, float("-inf")), axis=0)
        close = tl.min(tl.where(own[:, None], best, float("inf")), axis=0) <= own_bound  # (LANES,)
        own_second = tl.min(tl.min(tl.where(own[:, None], second, float("inf")), axis=1), axis=0)
        if own_second <= own_bound:
            winner = _search_again(z_ptr, codebook_ptr, vector, own_bound, num_codes, WIDTH, BLOCK_EXACT, BLOCK_WIDTH)
        else:
            own_first = tl.max(tl.where(own[:, None], best_first, 0), axis=0) + lanes
            winner = _nearest_member(
                z_ptr, codebook_ptr, vector, own_first, close, num_codes, WIDTH, BLOCK_CODES // LANES
            )
        result = tl.where(own, winner, result)
        next_row = tl.min(tl.where(certain | (row <= next_row), BLOCK_VECTORS, row), axis=0)
    tl.store(result_ptr + vectors, tl.minimum(result, num_codes - 1).to(tl.int64), mask=present)


def packed_width(width: int) -> int:
    """Return P for codes of `width` features: three products of each and three parts of the norm, in whole tiles."""
    return max(triton.next_power_of_2(3 * width + 3), 16)


def packed_slack(width: int) -> float:
    """Return twice the rounding error of a score of packed numbers, over |e| (|z| + |e|).

    Each of P products is exact and may lose one bit of 2^-23 of the largest in a sum that truncates, of 8 at a time and what was summed
    before; the splits leave out 2^-22 of z.e for the product of the lower parts and 2^-23 for what is below each of them, and the norm is
    rounded D times.
    """
    size = packed_width(width)
    return 2.0 * (size + size // 8 + width + 4) * 2.0**-23


def nearest_code_config(width: int) -> dict[str, int]:
    """Return block sizes for vectors of `width` features."""
    if packed_width(width) == 16:
        return {"BLOCK_VECTORS": 64, "BLOCK_CODES": 128, "BLOCK_EXACT": 1024, "num_warps": 4, "num_stages": 3}
    if packed_width(width) == 32:
        return {"BLOCK_VECTORS": 128, "BLOCK_CODES": 128, "BLOCK_EXACT": 1024, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_VECTORS": 64, "BLOCK_CODES": 64, "BLOCK_EXACT": 128, "num_warps": 4, "num_stages": 2}


def nearest_code_triton(z: Tensor, codebook: Tensor, config: dict[str, int] | None = None) -> Tensor:
    """See `nearest_code`; z (N, D) and codebook (K, D) in float32 or a 16-bit dtype. No host sync."""
    num_vectors, width = z.shape
    num_codes = codebook.shape[0]
    result = torch.empty(num_vectors, dtype=torch.int64, device=z.device)
    if num_vectors == 0:
        return result
    z, codebook = z.detach().contiguous(), codebook.detach().contiguous()
    if width >= TABLE_FROM_WIDTH:
        return nearest_code_wide(z, codebook)
    config = config or nearest_code_config(width)
    size = packed_width(width)
    rows = triton.cdiv(num_codes, config["BLOCK_CODES"]) * config["BLOCK_CODES"]  # whole tiles, which need no mask
    packed = torch.empty(rows, size, dtype=torch.float32, device=z.device)
    longest = torch.zeros(1, dtype=torch.float32, device=z.device)
    pack_rows = min(PACK_ROWS, config["BLOCK_CODES"])
    launch(
        pack_kernel, (rows // pack_rows,), z, codebook, packed, longest, num_codes, width, PACKED_WIDTH=size, BLOCK=pack_rows
    )  # fmt: skip
    launch(
        nearest_code_kernel, (triton.cdiv(num_vectors, config["BLOCK_VECTORS"]),), z, z, codebook, packed, longest, result,
        num_vectors, num_codes, packed_slack(width), WIDTH=width, PACKED_WIDTH=size,
        BLOCK_WIDTH=triton.next_power_of_2(width), **config,
    )  # fmt: skip
    return result
