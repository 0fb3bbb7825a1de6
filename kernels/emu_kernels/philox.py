"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A pure function of a 64-bit key and a 128-bit counter, hence of what the caller keys it by and of nothing else. The Triton
twin is `triton.language.philox`; both give the numbers of the Random123 library.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

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
    """Make the random words of rows of counters.

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
