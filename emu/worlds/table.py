"""Exact joint probabilities of two variables, kept as sorted arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Attribute: TypeAlias = np.ndarray | Callable[[np.ndarray, np.ndarray], np.ndarray]
"""What may be tested of a target: its value by number of the target, int64, or (targets (n,), prompts (n,)) -> (n,) int64 where both are
needed to tell it; -1 where there is no such thing."""


class ConditionalTable:
    """Joint probabilities of (target, given) and what follows from them.

    Args:
        target: (m,) int64.
        given: (m,) int64.
        weights: (m,) probabilities; pairs may repeat.
    """

    def __init__(self, target: np.ndarray, given: np.ndarray, weights: np.ndarray) -> None:
        kept = weights > 0
        target, given, weights = target[kept], given[kept], weights[kept]
        # A pair is one number, so that equal pairs are found by one sort; int64 has room for them (39 bits for two objects).
        self._radix = int(target.max()) + 1
        keys, inverse = np.unique(given * self._radix + target, return_inverse=True)
        self._keys = keys  # sorted by given, then target: the targets of one prompt lie side by side
        self.joint = np.bincount(inverse, weights)
        self.given, self.target = np.divmod(keys, self._radix)
        self.given_values, starts = np.unique(self.given, return_index=True)
        self._bounds = np.append(starts, len(keys))
        self.marginal = np.add.reduceat(self.joint, starts)

    def _places(self, given: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.given_values, given).clip(max=len(self.given_values) - 1)
        wrong = self.given_values[places] != given
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} of {len(wrong)} prompts never occur in this world, e.g. number {np.asarray(given)[wrong][0]}"
            )
        return places

    def log2_probability(self, target: np.ndarray, given: np.ndarray) -> np.ndarray:
        """(n,) float64 log2 P(target | given), -inf where impossible."""
        target, given = np.asarray(target, np.int64), np.asarray(given, np.int64)
        places = self._places(given)
        at, found = self._pairs(target, given)
        with np.errstate(divide="ignore"):  # log2(0) = -inf is the answer for impossible targets
            return np.log2(np.where(found, self.joint[at], 0.0) / self.marginal[places])

    def _pairs(self, target: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where pairs stand (n,), whether they occur (n,))."""
        keys = given * self._radix + target
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        # A target outside 0 .. radix - 1 would be taken for a pair of another prompt: -1 is what graders give for no scene at all.
        return at, (self._keys[at] == keys) & (target >= 0) & (target < self._radix)

    def entropies(self) -> np.ndarray:
        """(number of prompts,) float64 entropy in bits of the target given each of `given_values`."""
        # every pair in the table has p > 0, so that no 0 log 0 occurs
        odds = self.joint / np.repeat(self.marginal, np.diff(self._bounds))
        return np.add.reduceat(-odds * np.log2(odds), self._bounds[:-1])

    def entropy(self) -> float:
        """H(target | given) in bits."""
        # -sum p(t, g) log2 p(t | g); every pair in the table has p > 0, so that no 0 log 0 occurs
        marginal = np.repeat(self.marginal, np.diff(self._bounds))
        return float((self.joint * np.log2(marginal / self.joint)).sum())

    def outcomes(self, given: int) -> tuple[np.ndarray, np.ndarray]:
        """The possible targets of one prompt, ascending, and their probabilities."""
        place = int(self._places(np.array([given]))[0])
        span = slice(self._bounds[place], self._bounds[place + 1])
        return self.target[span], self.joint[span] / self.marginal[place]

    def all_outcomes(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The possible targets of prompts (n,), one prompt after another: (targets (k,), their odds (k,), number of the prompt (k,))."""
        places = self._places(given)
        starts, counts = self._bounds[places], np.diff(self._bounds)[places]
        owner = np.repeat(np.arange(len(places)), counts)
        rows = np.arange(counts.sum()) + (starts - counts.cumsum() + counts)[owner]
        return self.target[rows], self.joint[rows] / self.marginal[places][owner], owner

    def rank(self, target: np.ndarray, given: np.ndarray) -> np.ndarray:
        """(n,) int64 place of each target among those that its prompt allows, in ascending order; -1 where it does not allow it."""
        at, found = self._pairs(target, given)
        return np.where(found, at - self._bounds[self._places(given)], -1)

    def reduced(self, values: Attribute, given: np.ndarray) -> np.ndarray:
        """(n, number of values) odds of an attribute of the target for each prompt; what has no value (-1) counts for none."""
        prompts, inverse = np.unique(given, return_inverse=True)  # thousands of samples share a few prompts
        targets, odds, owner = self.all_outcomes(prompts)
        seen = values(targets, prompts[owner]) if callable(values) else values[targets]
        width = 1 + int(seen.max(initial=0) if callable(values) else values.max())
        valued = seen >= 0
        counts = np.bincount(owner[valued] * width + seen[valued], odds[valued], minlength=len(prompts) * width)
        return counts.reshape(len(prompts), width)[inverse]
