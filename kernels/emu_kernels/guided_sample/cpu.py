"""The sampler in numpy: the CPU path and devices without kernels. Noise is keyed, so that a draw is the same on every device."""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64).reshape(2, 1, 1)
_SWAPPED = np.ascontiguousarray(_MULTIPLIERS[::-1])
_WEYL = (np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)).astype(
    np.uint32
)  # (10, 2), what the key has grown by in each round
_LOW = 0 if sys.byteorder == "little" else 1


def philox(
    seed: NDArray[np.int64], counter: tuple[NDArray[np.int64] | int, ...], blocks: int | NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Make the random words of rows of counters: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    A pure function of a 64-bit key and a 128-bit counter. The Triton twin is `triton.language.philox`; both give the numbers of the
    Random123 library.

    Args:
        seed: key of each row, (B,); all 64 bits count.
        counter: the counter words 1, 2 and 3 of each row, (B,) or a number; their low 32 bits count.
        blocks: values of the counter word 0, (num_blocks,), or a number of them: 0 to blocks - 1.

    Returns:
        (4, B, num_blocks) uint32: the four words of each counter.
    """
    numbers = np.arange(blocks, dtype=np.uint32) if isinstance(blocks, int) else blocks.astype(np.uint32)
    num_rows, num_blocks = seed.shape[0], numbers.shape[0]
    key = seed.astype("<i8").view("<u4").astype(np.uint32).reshape(num_rows, 2).T  # low and high words
    schedule = key[None, :, :, None] + _WEYL[:, :, None, None]  # (10, 2, B, 1)
    even = np.empty((2, num_rows, num_blocks), dtype=np.uint32)  # words 0 and 2
    odd = np.empty_like(even)  # words 1 and 3
    even[0] = numbers
    for words, value in ((odd[0], counter[0]), (even[1], counter[1]), (odd[1], counter[2])):
        words[:] = np.asarray(value, dtype=np.int64).astype(np.uint32).reshape(-1, 1)
    products = [np.empty(even.shape, dtype=np.uint64) for _ in range(2)]
    low = [product.view(np.uint32)[..., _LOW::2] for product in products]
    high = [product.view(np.uint32)[..., 1 - _LOW :: 2] for product in products]
    for number in range(ROUNDS):
        # The halves change places in every round; the views do it without a copy.
        turn = number % 2
        np.multiply(even, _SWAPPED if turn else _MULTIPLIERS, out=products[turn])
        np.bitwise_xor(high[turn], odd[::-1], out=even)
        np.bitwise_xor(even, schedule[number] if turn else schedule[number, ::-1], out=even)
        odd = low[turn]
    return np.stack([even[0], odd[0], even[1], odd[1]])


ROW_GROUP = 2**17
"""Candidates of the rows that are worked on together: their scores and noise stay in a cache."""
MANY, SPARSE = 2**14, 8
"""From MANY candidates on, of which top-k keeps at most one in SPARSE, noise is made for the kept ones alone."""


def guided_sample_torch(
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
    """Draw offsets (B,) on the CPU; `top_k` 0 keeps all candidates."""
    num_rows, num_candidates = logits.shape[1:]
    seeds, streams, positions = (x.numpy(force=True) for x in (seed, stream, position))
    result = np.empty(num_rows, dtype=np.int64)
    step = max(ROW_GROUP // num_candidates, 1)
    for first in range(0, num_rows, step):
        rows = slice(first, first + step)
        scores = _mix(logits[:, rows], scale, part_scale)
        if temperature == 0.0:
            result[rows] = scores.argmax(1)
            continue
        probabilities = _filtered(scores, temperature, top_k, top_p)
        if MANY <= num_candidates >= SPARSE * top_k > 0:
            for row in range(rows.start, min(rows.stop, num_rows)):
                key = seeds[row : row + 1], streams[row : row + 1], positions[row : row + 1], draw
                result[row] = _draw_among_few(probabilities[row - first], *key)
            continue
        noise = exponential_noise(seeds[rows], streams[rows], positions[rows], draw, num_candidates).astype(
            scores.dtype
        )
        result[rows] = np.divide(probabilities, noise, out=probabilities).argmax(1)
    return torch.from_numpy(result).to(logits.device)


def _draw_among_few(
    probabilities: NDArray,
    seed: NDArray[np.int64],
    stream: NDArray[np.int64],
    position: NDArray[np.int64],
    draw: int,
) -> int:
    """Draw the winner of one row (K,); noise is made only for the candidates that are left, each its own as in `exponential_noise`."""
    kept = np.flatnonzero(probabilities > 0)
    if not len(kept):
        return 0
    blocks = kept >> 2
    first = np.empty(len(blocks), dtype=bool)  # of the candidates of its block
    first[0] = True
    np.not_equal(blocks[1:], blocks[:-1], out=first[1:])
    words = philox(seed, (position, stream, draw), blocks[first])[:, 0]  # (4, blocks)
    noise = to_exponential(words[kept & 3, first.cumsum() - 1]).astype(probabilities.dtype)
    return int(kept[np.divide(probabilities[kept], noise).argmax()])


def _mix(logits: Tensor, scale: float, part_scale: float) -> NDArray:
    """Mix (R, B, K) -> guided logits (B, K), a fresh array of float32 or float64."""
    rows = (logits if logits.dtype == torch.float64 else logits.float()).numpy(force=True)
    if rows.shape[0] == 1:
        return np.where(np.isnan(rows[0]), -np.inf, rows[0])
    with np.errstate(invalid="ignore"):
        if rows.shape[0] == 2:
            mixed = rows[1] + scale * (rows[0] - rows[1])
        else:
            mixed = rows[1] + part_scale * (rows[2] - rows[1]) + scale * (rows[0] - rows[2])
    mixed[np.isnan(mixed)] = -np.inf
    return mixed


def inverse(temperature: float) -> float:
    """Return 1 / temperature, at most 2**100: in float32 more becomes infinite, and 0 * inf would spoil the most likely candidate."""
    return min(1.0 / temperature, 2.0**100)


def _filtered(scores: NDArray, temperature: float, top_k: int, top_p: float) -> NDArray:
    """Compute unnormalised probabilities (B, K) after temperature, top-k and top-p, 1 for the most likely; overwrites scores."""
    peak = scores.max(1, keepdims=True)
    finite = np.isfinite(peak)
    if not finite.all():
        # Nothing finite counts beside an infinite score, and several of them are equal.
        certain = np.where(np.isposinf(scores), 0.0, -np.inf).astype(scores.dtype)
        scores = np.where(np.isposinf(peak), certain, scores)
        peak = np.where(finite, peak, 0.0)
    np.subtract(scores, peak, out=scores)
    np.multiply(scores, inverse(temperature), out=scores)
    if top_k:
        place = scores.shape[1] - top_k  # partition instead of a sort: linear, and only the threshold is needed
        scores[scores < np.partition(scores, place, axis=1)[:, place, None]] = -np.inf
    probabilities = np.exp(scores, out=scores)
    if top_p < 1.0:
        ranked = -np.sort(-probabilities, axis=1)
        mass = ranked.cumsum(1)
        # A candidate stays while the mass before it falls short; `ranked[num_kept - 1]` is the last one, and its ties stay with it.
        num_kept = (mass - ranked < top_p * mass[:, -1:]).sum(1, keepdims=True)
        probabilities[probabilities < np.take_along_axis(ranked, num_kept - 1, axis=1)] = 0.0
    return probabilities


def exponential_noise(
    seed: NDArray[np.int64],
    stream: NDArray[np.int64],
    position: NDArray[np.int64],
    draw: int,
    num_candidates: int,
) -> NDArray[np.float32]:
    """Make standard exponential numbers (B, num_candidates); candidate i takes word i % 4 of the counter i // 4."""
    words = philox(seed, (position, stream, draw), -(-num_candidates // 4))  # (4, B, blocks)
    return to_exponential(words.transpose(1, 2, 0).reshape(seed.shape[0], -1)[:, :num_candidates])


def to_exponential(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Compute -log1p(-u) with u = (word + 1/2) / 2**32: full relative precision near zero, where the winners are, and never zero.

    u rounds up to 1 once in 2**25 words: infinity, which never wins.
    """
    uniform = words.astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(-(2.0**-32))
    with np.errstate(divide="ignore"):
        np.log1p(uniform, out=uniform)
    return np.negative(uniform, out=uniform)
