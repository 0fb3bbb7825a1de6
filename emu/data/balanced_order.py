"""Endless shuffled orders of documents in which every stretch holds short and long ones in their usual proportion."""

from __future__ import annotations

import math

import numpy as np

from emu.randomness import KeyedPermutation, derive_key, derive_keys

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
WINDOW = 64
"""Documents of neighbouring lengths that change places from epoch to epoch."""


class BalancedOrder:
    """The documents of a source, epoch after epoch, every one once in each.

    Of documents in plain random order, 16,384 differ in their tokens from the mean by about 1 % of it: a fixed number of rows would be too
    many or too few by as much. Here a stretch of n documents differs by the tokens of a few. Documents are ranked by length, and an epoch
    goes through the ranks in steps of the golden ratio, which spreads any number of successive points evenly (a Kronecker sequence:
    Niederreiter, Random Number Generation and Quasi-Monte Carlo Methods, 1992, ch. 3). Which rank an epoch begins at and which document of
    neighbouring lengths a rank stands for is drawn anew for each. Any place is found at once, without going through those before it.

    Args:
        lengths: (n,) tokens of each document.
        key: chooses the order.
    """

    def __init__(self, lengths: np.ndarray, key: int) -> None:
        self._size, self._key = len(lengths), key
        shuffled = KeyedPermutation(self._size, key)(
            np.arange(self._size)
        )  # of equal lengths, neighbours in the files are torn apart
        self._by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")].astype(np.int32)
        self._step = next(
            s for s in range(max(1, round(GOLDEN_RATIO * self._size)), 2 * self._size) if self._coprime(s)
        )

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the documents at positions (n,) int64 of the endless order, (n,) int64."""
        epochs, offsets = np.divmod(positions, self._size)
        first = derive_keys(derive_key("first", self._key), epochs) % self._size
        ranks = (offsets * self._step + first) % self._size
        windows, places = np.divmod(ranks, WINDOW)
        widths = np.minimum(WINDOW, self._size - windows * WINDOW)  # the last window is narrower
        turns = derive_keys(derive_key("turn", self._key), epochs * (self._size // WINDOW + 1) + windows)
        return self._by_length[windows * WINDOW + (places + turns) % widths].astype(np.int64)

    def _coprime(self, step: int) -> bool:
        return math.gcd(step, self._size) == 1
