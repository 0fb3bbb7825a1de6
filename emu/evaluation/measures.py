"""A figure with its uncertainty and the single items behind it, so that two models can be compared item by item."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emu.evaluation.statistics import Interval, mean, paired_difference, proportion

MIN_ITEMS = 30
"""Fewer items have no normal interval."""


@dataclass(frozen=True)
class Measure:
    """A figure.

    Attributes:
        interval: the figure and its interval.
        values: (n,) float64 what each item gave, or None where they are not kept.
        items: digest of the items, in order: only figures of equal items are compared item by item.
    """

    interval: Interval
    values: np.ndarray | None = None
    items: str = ""

    def __str__(self) -> str:
        return str(self.interval)

    @property
    def value(self) -> float:
        """The figure."""
        return self.interval.value

    def minus(self, other: Measure) -> Interval | None:
        """The mean difference to another model's figure, with the interval of paired differences; None where items differ or are few."""
        if self.values is None or other.values is None or not self.items or self.items != other.items:
            return None
        if len(self.values) < MIN_ITEMS:
            return None
        return paired_difference(self.values, other.values)

    def to_dict(self) -> dict[str, Any]:
        """The interval as JSON types."""
        return asdict(self.interval)


def share_measure(hits: np.ndarray, items: object) -> Measure:
    """The share of true values (n,) bool, of items that `repr` tells apart from others."""
    return Measure(proportion(hits), np.asarray(hits, np.float64), digest_of(items))


def mean_measure(values: np.ndarray, items: object) -> Measure:
    """The mean of numbers (n,), 30 or more; errors as in `emu.evaluation.statistics.mean`."""
    return Measure(mean(values), np.asarray(values, np.float64), digest_of(items))


def digest_of(items: object) -> str:
    """16 hexadecimal digits that tell apart what `repr` tells apart; arrays are told by their bytes."""
    told = items.tobytes() if isinstance(items, np.ndarray) else repr(items).encode("utf-8", "backslashreplace")
    return hashlib.sha256(told).hexdigest()[:16]


def figures_of(measures: Mapping[str, Measure], digits: int = 4) -> dict[str, float]:
    """The plain numbers of measures."""
    return {name: round(measure.value, digits) for name, measure in measures.items()}


def grouped_shares(name: str, hits: np.ndarray, kinds: Sequence[str], items: object) -> dict[str, Measure]:
    """The share of all under `name`, and of each kind of item under "name/kind".

    Args:
        name: of the figure.
        hits: (n,) bool.
        kinds: n names.
        items: what tells the items apart.
    """
    found = {name: share_measure(hits, items)}
    for kind in dict.fromkeys(kinds):
        some = np.array([one == kind for one in kinds])
        found[f"{name}/{kind}"] = share_measure(hits[some], (items, kind))
    return found
