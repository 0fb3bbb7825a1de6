"""Randomness without state: numbers and orders that are a pure function of a key and a position.

Draw 1,000,000 costs no more than draw 0, and an epoch of any size is shuffled without a list of indices and without a cursor: the position
is the whole state. Both rest on the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
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


def derive_keys(key: int, numbers: np.ndarray) -> np.ndarray:
    """Keys (n,) int64, 63 bits each, of the documents `numbers` (n,) under one key: `derive_key` for thousands of documents at once."""
    counters = np.uint64(key) + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return (_mix64(counters) >> np.uint64(1)).astype(np.int64)


def key_of(*parts: object) -> int:
    """A 64-bit key from the texts of some parts: the key of rendered worlds.

    It stays beside `derive_key`, since every document of a world, and so every published floor and score, follows from these bits.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Uniform numbers in [0, 1) at the positions start .. start + count - 1 of a stream.

    Args:
        key: chooses the stream.
        start: first position.
        count: number of positions.
        width: numbers at each position.

    Returns:
        (count, width) float64.
    """
    counter = np.arange(start * width, (start + count) * width, dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = _mix64(np.uint64(key % 2**64) + (counter + np.uint64(1)) * _GOLDEN)
    # float64 holds 53 bits: the upper ones, since a product's lower bits depend on fewer bits of the key
    return ((state >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(count, width)


class KeyedPermutation:
    """A permutation of 0 .. size-1 chosen by `key`.

    A Feistel network on two unequal halves is a bijection of a grid just larger than the range; a position that it sends out of the range
    is sent on until it is back in it ("cycle walking", Black and Rogaway, CT-RSA 2002), which keeps it a bijection of the range.

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
        while outside.size:  # ends: a bijection's cycle through a position of the range comes back to the range
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
    """The finaliser of SplitMix64: uint64 in, uint64 out, wrapping."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return values ^ (values >> np.uint64(31))
