"""Orders without state: a permutation of n items that is a pure function of a key.

A Feistel network on two unequal halves is a bijection of a grid just larger than n; indices that leave the range walk on until they are
back in it. Any position of an epoch of any size is found at once, so that shuffled data needs no index list and no cursor: the position is
the whole state.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

NUM_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> int:
    """A 63-bit key from integers and strings: equal parts give equal keys on every machine and in every process.

    Use it to key the randomness of one document (augmentation, dropped captions) by where it stands, never by a generator's state.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class KeyedPermutation:
    """A permutation of 0 .. size-1 chosen by `key`.

    Args:
        size: number of items, at least 1.
        key: any non-negative 64-bit integer, e.g. of `derive_key(seed, name, epoch)`.

    Raises:
        ValueError: the size is below 1.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} items; it needs at least one")
        self.size = size
        self._left = max(1, math.isqrt(size - 1) + 1)  # smallest square side that covers the range
        self._right = -(-size // self._left)
        rounds = np.arange(1, NUM_ROUNDS + 1, dtype=np.uint64) * _GOLDEN
        self._keys = _mix64(rounds + np.uint64(key))

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: np.ndarray | list[int] | range | int) -> np.ndarray:
        """Items at the given positions.

        Args:
            positions: integers in 0 .. size-1, any shape.

        Returns:
            int64 array of the same shape.

        Raises:
            IndexError: a position lies outside the range.
        """
        values = np.asarray(positions, dtype=np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.size):
            raise IndexError(f"positions must lie in 0..{self.size - 1}, got {values.min()}..{values.max()}")
        out = self._rounds(values.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(out >= self.size)
        while outside.size:
            out[outside] = self._rounds(out[outside])
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64).reshape(values.shape)

    def _rounds(self, values: np.ndarray) -> np.ndarray:
        left_size, right_size = np.uint64(self._left), np.uint64(self._right)
        left, right = values // right_size, values % right_size
        for number, key in enumerate(self._keys):
            if number % 2:
                left = ((left + _mix64(right + key) % left_size) % left_size).astype(np.uint64)
            else:
                right = ((right + _mix64(left + key) % right_size) % right_size).astype(np.uint64)
        return left * right_size + right


def _mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 in, uint64 out, wrapping."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return values ^ (values >> np.uint64(31))
