"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A pure function of a 64-bit key and a 128-bit counter, hence of what the caller keys it by and of nothing else. The Triton
twin is `triton.language.philox`; both give the numbers of the Random123 library.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64).reshape(2, 1, 1)
_SWAPPED = np.ascontiguousarray(_MULTIPLIERS[::-1])
_WEYL = np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)  # (10, 2)


def philox(
    seed: NDArray[np.int64], counter: tuple[NDArray[np.int64] | int, ...], num_blocks: int
) -> NDArray[np.uint64]:
    """Random words of rows of counters.

    Args:
        seed: key of each row, (B,); all 64 bits count.
        counter: the counter words 1, 2 and 3 of each row, (B,) or a number; their low 32 bits count.
        num_blocks: the counter word 0 runs from 0 to num_blocks - 1.

    Returns:
        (4, B, num_blocks), numbers below 2**32: the four words of each counter.
    """
    num_rows = seed.shape[0]
    key = seed.view(np.uint64)[:, None]
    schedule = np.stack([key & _LOW, key >> _HALF])  # (2, B, 1)
    schedule = (schedule + _WEYL[:, :, None, None]) & _LOW  # (10, 2, B, 1)
    even = np.empty((2, num_rows, num_blocks), dtype=np.uint64)  # words 0 and 2
    odd = np.empty_like(even)  # words 1 and 3
    even[0] = np.arange(num_blocks, dtype=np.uint64)
    for words, value in ((odd[0], counter[0]), (even[1], counter[1]), (odd[1], counter[2])):
        words[:] = (np.asarray(value, dtype=np.int64).astype(np.uint64) & _LOW).reshape(-1, 1)
    product = np.empty_like(even)
    for number in range(ROUNDS):
        # The halves change places in every round; the views do it without a copy.
        straight = number % 2 == 1
        np.multiply(even, _SWAPPED if straight else _MULTIPLIERS, out=product)
        np.right_shift(product, _HALF, out=even)
        np.bitwise_xor(even, odd[::-1], out=even)
        np.bitwise_xor(even, schedule[number] if straight else schedule[number, ::-1], out=even)
        np.bitwise_and(product, _LOW, out=odd)
    return np.stack([even[0], odd[0], even[1], odd[1]])
