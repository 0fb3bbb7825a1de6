# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton search of the nearest codebook entry: scores stream through registers, doubtful vectors are searched again in float64.

Legend: N vectors, K codes, D features. A program owns BLOCK_VECTORS vectors and walks over the codes in groups of
GROUP * BLOCK_CODES. Each of its lanes (a vector and a code's place within BLOCK_CODES) keeps the best and the second best group
that it has seen, which costs one comparison per group instead of one per code. The score |e|^2 / 2 - z.e is rounded, so the
winner is certain only if no other lane and no second group comes within the rounding bound; each uncertain vector (1 in 300 of
normal ones among 32,768 codes of 4 features) is searched again in float64 with plain differences.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.checks import accumulation_dtype
from emu_kernels.dispatch import launch
from emu_kernels.nearest_code.cpu import rounding_slack
from emu_kernels.nearest_code.gpu_exact import exact_distance
from emu_kernels.nearest_code.gpu_wide import nearest_code_wide

MAX_UNROLLED_WIDTH = 8
TABLE_FROM_WIDTH = 64
"""Features from which a table of scores is faster: 92 ms here against 37 for the plainest of tables with 256 of them on an H200."""


@triton.jit
def _scores(
    z_ptr, codebook_ptr, half_norm_ptr, vectors, codes, num_vectors, num_codes, width, DOT: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_VECTORS: tl.constexpr, BLOCK_CODES: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute |e|^2 / 2 - z.e for (BLOCK_VECTORS, BLOCK_CODES), +inf beyond the codebook."""
    half_norm = tl.load(half_norm_ptr + codes, mask=codes < num_codes, other=float("inf"))
    score = tl.zeros((BLOCK_VECTORS, BLOCK_CODES), dtype=tl.float32) + half_norm[None, :]
    if DOT:
        product = tl.zeros((BLOCK_VECTORS, BLOCK_CODES), dtype=tl.float32)
        for start in range(0, width, BLOCK_WIDTH):
            feature = start + tl.arange(0, BLOCK_WIDTH)
            left = tl.load(
                z_ptr + vectors[:, None] * width + feature[None, :],
                mask=(vectors[:, None] < num_vectors) & (feature[None, :] < width), other=0.0,
            )  # fmt: skip
            right = tl.load(
                codebook_ptr + codes[None, :] * width + feature[:, None],
                mask=(codes[None, :] < num_codes) & (feature[:, None] < width), other=0.0,
            )  # fmt: skip
            # Three tf32 products: about float32, on tensor cores; `slack` in the launcher covers what they lose.
            product = tl.dot(left.to(tl.float32), right.to(tl.float32), product, input_precision="tf32x3")
        score -= product
    else:
        for feature in tl.static_range(WIDTH):  # too narrow for tensor cores, which take 16 features at least
            left = tl.load(z_ptr + vectors * width + feature, mask=vectors < num_vectors, other=0.0)
            right = tl.load(codebook_ptr + codes * width + feature, mask=codes < num_codes, other=0.0)
            score -= left.to(tl.float32)[:, None] * right.to(tl.float32)[None, :]
    return score


@triton.jit
def _exact_search(z_ptr, codebook_ptr, vector, num_codes, width, BLOCK_EXACT: tl.constexpr):
    """Find the code of least float64 distance to one vector, the lowest on ties."""
    least = tl.full((BLOCK_EXACT,), float("inf"), dtype=tl.float64)
    nearest = tl.zeros((BLOCK_EXACT,), dtype=tl.int32)
    vectors = tl.zeros((BLOCK_EXACT,), dtype=tl.int64) + vector
    for first in range(0, num_codes, BLOCK_EXACT):
        codes = first + tl.arange(0, BLOCK_EXACT)
        distance = exact_distance(z_ptr, codebook_ptr, vectors, codes, codes < num_codes, width)
        nearest = tl.where(distance < least, codes, nearest)
        least = tl.minimum(distance, least)
    return tl.min(tl.where(least == tl.min(least, axis=0), nearest, 2147483647), axis=0)


@triton.jit
def nearest_code_kernel(
    z_ptr, codebook_ptr, half_norm_ptr, code_norm_ptr, result_ptr, num_vectors, num_codes, width, slack,
    DOT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_VECTORS: tl.constexpr, BLOCK_CODES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK_EXACT: tl.constexpr,
):  # fmt: skip
    """Search: z (N, D), codebook (K, D), half_norm (K,) = |e|^2 / 2, code_norm (1,) = max |e| -> result (N,) int64."""
    vectors = tl.program_id(0).to(tl.int64) * BLOCK_VECTORS + tl.arange(0, BLOCK_VECTORS)
    lanes = tl.arange(0, BLOCK_CODES)
    best = tl.full((BLOCK_VECTORS, BLOCK_CODES), float("inf"), dtype=tl.float32)
    second = tl.full((BLOCK_VECTORS, BLOCK_CODES), float("inf"), dtype=tl.float32)
    best_first = tl.zeros((BLOCK_VECTORS, BLOCK_CODES), dtype=tl.int32)
    for first in range(0, num_codes, GROUP * BLOCK_CODES):
        least = tl.full((BLOCK_VECTORS, BLOCK_CODES), float("inf"), dtype=tl.float32)
        for member in tl.static_range(GROUP):
            codes = first + member * BLOCK_CODES + lanes
            score = _scores(
                z_ptr, codebook_ptr, half_norm_ptr, vectors, codes, num_vectors, num_codes, width, DOT, WIDTH,
                BLOCK_VECTORS, BLOCK_CODES, BLOCK_WIDTH,
            )  # fmt: skip
            least = tl.minimum(least, score)
        # Before `best` changes: the loser of the two is the candidate for second place.
        second = tl.minimum(second, tl.maximum(best, least))
        best_first = tl.where(least < best, first, best_first)
        best = tl.minimum(best, least)

    norm = tl.zeros((BLOCK_VECTORS,), dtype=tl.float32)
    for feature in range(width):
        value = tl.load(z_ptr + vectors * width + feature, mask=vectors < num_vectors, other=0.0).to(tl.float32)
        norm += value * value
    code_norm = tl.load(code_norm_ptr)  # of the longest code: one bound for all, a little wide for the short ones
    bound = tl.min(best, axis=1) + slack * code_norm * (tl.sqrt(norm) + code_norm)  # (BLOCK_VECTORS,)
    close = best <= bound[:, None]
    num_close = tl.sum(close.to(tl.int32) + (second <= bound[:, None]).to(tl.int32), axis=1)
    lane = tl.argmin(best, axis=1)
    group = tl.sum(tl.where(lanes[None, :] == lane[:, None], best_first, 0), axis=1)

    # The lane remembers its group alone; which of its members won is found by exact distances, in order, so ties go to the lowest.
    result = group + lane
    least_distance = exact_distance(z_ptr, codebook_ptr, vectors, result, vectors < num_vectors, width)
    for member in tl.static_range(1, GROUP):
        code = group + member * BLOCK_CODES + lane
        inside = (vectors < num_vectors) & (code < num_codes)
        distance = exact_distance(z_ptr, codebook_ptr, vectors, code, inside, width)
        result = tl.where(distance < least_distance, code, result)
        least_distance = tl.minimum(distance, least_distance)

    # Uncertain vectors are few: one after the other, all lanes of the program on the distances of one.
    place = tl.arange(0, BLOCK_VECTORS)
    certain = (num_close <= 1) | (vectors >= num_vectors)
    next_place = tl.min(tl.where(certain, BLOCK_VECTORS, place), axis=0)
    while next_place < BLOCK_VECTORS:
        vector = tl.program_id(0).to(tl.int64) * BLOCK_VECTORS + next_place
        winner = _exact_search(z_ptr, codebook_ptr, vector, num_codes, width, BLOCK_EXACT)
        result = tl.where(place == next_place, winner, result)
        next_place = tl.min(tl.where(certain | (place <= next_place), BLOCK_VECTORS, place), axis=0)
    tl.store(result_ptr + vectors, result.to(tl.int64), mask=vectors < num_vectors)


def nearest_code_config(width: int) -> dict[str, int]:
    """Return block sizes for vectors of `width` features."""
    if width <= MAX_UNROLLED_WIDTH:
        return {
            "BLOCK_VECTORS": 64,
            "BLOCK_CODES": 64,
            "BLOCK_WIDTH": 16,
            "GROUP": 4,
            "BLOCK_EXACT": 1024,
            "num_warps": 8,
            "num_stages": 2,
        }
    return {
        "BLOCK_VECTORS": 64,
        "BLOCK_CODES": 64,
        "BLOCK_WIDTH": 16,
        "GROUP": 2,
        "BLOCK_EXACT": 1024,
        "num_warps": 8,
        "num_stages": 2,
    }


def nearest_code_triton(z: Tensor, codebook: Tensor, config: dict[str, int] | None = None) -> Tensor:
    """See `nearest_code`; z (N, D) and codebook (K, D) in float32 or a 16-bit dtype. No host sync."""
    num_vectors, width = z.shape
    num_codes = codebook.shape[0]
    result = torch.empty(num_vectors, dtype=torch.int64, device=z.device)
    if num_vectors == 0:
        return result
    z, codebook = z.detach().contiguous(), codebook.detach().contiguous()
    if width >= TABLE_FROM_WIDTH and config is None:
        return nearest_code_wide(z, codebook)
    half_norm = codebook.to(accumulation_dtype(z.dtype)).square().sum(1).mul_(0.5)
    code_norm = half_norm.max().mul(2.0).sqrt().reshape(1)
    config = config or nearest_code_config(width)
    dot = width > MAX_UNROLLED_WIDTH
    slack = 2.0**-16 if dot else rounding_slack(width, torch.float32)
    launch(
        nearest_code_kernel, (triton.cdiv(num_vectors, config["BLOCK_VECTORS"]),), z, z, codebook,
        half_norm, code_norm, result, num_vectors, num_codes, width, slack, DOT=dot, WIDTH=1 if dot else width, **config,
    )  # fmt: skip
    return result
