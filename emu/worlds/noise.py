"""Random numbers that are a pure function of their address, so that draw 1,000,000 costs no more than draw 0."""

from __future__ import annotations

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: object) -> int:
    """A 64-bit key of these parts, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Uniform numbers in [0, 1) at the addresses start .. start + count - 1 of a stream.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over a counter.

    Args:
        key: chooses the stream.
        start: first address.
        count: number of addresses.
        width: numbers at each address.

    Returns:
        (count, width) float64.
    """
    counter = np.arange(start * width, (start + count) * width, dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = np.uint64(key % 2**64) + (counter + np.uint64(1)) * _STEP
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(count, width)
