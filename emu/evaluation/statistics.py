"""Numbers with their uncertainty: intervals, chi-square tests, and the excess of a model over a known entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

MIN_EXPECTED = 5.0
"""Least expected count of a cell for which the chi-square distribution is a fair approximation (Cochran 1954)."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        count: number of observations.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class ChiSquare:
    """A test of counts against known odds.

    Attributes:
        statistic: sum over cells of (observed - expected)^2 / expected; inf where something impossible was seen.
        freedom: degrees of freedom.
        p_value: probability of a statistic at least as large if the odds are true.
        count: number of observations.
    """

    statistic: float
    freedom: int
    p_value: float
    count: int

    def __str__(self) -> str:
        return f"chi2({self.freedom}) = {self.statistic:.1f}, p = {self.p_value:.3g}"


def quantile(confidence: float) -> float:
    """Two-sided quantile of the normal distribution, 1.96 for 0.95.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1")
    return math.sqrt(2) * float(torch.special.erfinv(torch.tensor(confidence, dtype=torch.float64)))


def proportion(hits: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Share of true values with Wilson's interval (Wilson 1927), which stays inside [0, 1].

    Args:
        hits: (n,) bool.
        confidence: of the interval.

    Raises:
        ValueError: there are no observations.
    """
    hits = np.asarray(hits, dtype=bool)
    count = hits.size
    if count == 0:
        raise ValueError("a share of zero observations; it needs at least one")
    z, share = quantile(confidence), float(hits.mean())
    # The solutions p of |share - p| = z sqrt(p (1 - p) / count), a quadratic equation: unlike share +- z error, never empty at 0 or 1.
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding alone would leave an end a hair outside [0, 1] there.
    low, high = (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
    return Interval(share, low, high, count)


def mean(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent observations with the normal interval.

    Args:
        values: (n,) numbers.
        confidence: of the interval.

    Raises:
        ValueError: fewer than 30 observations, for which the normal approximation is too narrow, or a value that is not a number.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 30:
        raise ValueError(f"a mean of {values.size} observations has no normal interval; it needs at least 30")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {values.size} observations are not a number")
    value = float(values.mean())
    # An infinite observation (a model that rules the truth out) makes the mean infinite and its interval useless, not an error.
    half = quantile(confidence) * float(values.std(ddof=1)) / math.sqrt(values.size) if np.isfinite(value) else math.inf
    return Interval(value, value - half, value + half, values.size)


def paired_difference(ours: np.ndarray, theirs: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of `ours - theirs`, item by item, with the normal interval of the differences.

    What is hard for both varies in both and cancels, so that the interval is narrower than that of two means apart.

    Args:
        ours: (n,) what one model got on each item, 1 and 0 for right and wrong.
        theirs: (n,) what another got on the same items.
        confidence: of the interval.

    Raises:
        ValueError: lengths differ, or there are fewer than 30 items.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"values of {ours.shape} and of {theirs.shape} items; compare models on the same items")
    return mean(ours - theirs, confidence)


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that counts were drawn from, with the correction of Miller and Madow (1955).

    The entropy of the counts themselves is too low by about (values - 1) / 2n nats, since what was not drawn counts as impossible.

    Args:
        counts: (k,) observations of each value.

    Raises:
        ValueError: there are no observations, or a count is negative.
    """
    counts = np.asarray(counts, np.float64)
    if counts.sum() <= 0 or (counts < 0).any():
        raise ValueError(f"the entropy of {counts.sum():g} observations; it needs at least one, and no negative count")
    odds = counts[counts > 0] / counts.sum()
    return float(-(odds * np.log2(odds)).sum()) + (len(odds) - 1) / (2 * counts.sum() * math.log(2))


def excess_bits(model_bits: np.ndarray, exact_bits: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of model bits minus exact bits, document by document: an unbiased estimate of the model's KL divergence from the truth.

    The difference varies far less than either term, so that a few hundred documents are enough for hundredths of a bit.

    Args:
        model_bits: (n,) bits that the model spends on each document's target.
        exact_bits: (n,) bits that the true distribution spends on it.
        confidence: of the interval.

    Raises:
        ValueError: lengths differ, or there are fewer than 30 documents.
    """
    model_bits, exact_bits = np.asarray(model_bits, np.float64), np.asarray(exact_bits, np.float64)
    if model_bits.shape != exact_bits.shape:
        raise ValueError(
            f"model bits of {model_bits.shape} documents, exact bits of {exact_bits.shape}; score the same documents"
        )
    return mean(model_bits - exact_bits, confidence)


def samples_needed(odds: np.ndarray) -> int:
    """Least number of samples that expects `MIN_EXPECTED` in every possible cell."""
    odds = np.asarray(odds, np.float64)
    return math.ceil(
        MIN_EXPECTED / float(odds[odds > 0].min()) - 1e-9
    )  # odds a rounding error too small must not ask for one more


def chi_square(counts: np.ndarray, odds: np.ndarray) -> ChiSquare:
    """Pearson's test of counts against known odds.

    Args:
        counts: (k,) observations of each value.
        odds: (k,) true probabilities; cells of probability 0 must not be observed.

    Raises:
        ValueError: the odds do not sum to one, or there are too few observations; the message says how many are needed.
    """
    return chi_square_groups([(counts, odds)])


def chi_square_groups(groups: list[tuple[np.ndarray, np.ndarray]]) -> ChiSquare:
    """One test over groups of observations that have different known odds: statistics and degrees of freedom add up.

    Args:
        groups: (counts, odds) of each group, see `chi_square`.

    Raises:
        ValueError: see `chi_square`; or no group has more than one possible value, so that nothing is left to test.
    """
    statistic, freedom, total = 0.0, 0, 0
    for given_counts, given_odds in groups:
        counts, odds = np.asarray(given_counts, np.float64), np.asarray(given_odds, np.float64)
        _check(counts, odds)
        possible = odds > 0
        expected = counts.sum() * odds[possible]
        statistic += (
            math.inf if counts[~possible].any() else float(((counts[possible] - expected) ** 2 / expected).sum())
        )
        freedom += (
            int(possible.sum()) - 1
        )  # the odds are known, nothing was fitted: only the total of the group is fixed
        total += int(counts.sum())
    if freedom == 0:
        raise ValueError("the odds leave nothing free: every group has one possible value, so there is nothing to test")
    return ChiSquare(statistic, freedom, _upper_tail(statistic, freedom), total)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): with all hypotheses true, the smallest is below a level no oftener than that level.

    Args:
        p_values: of all tests of a family, in any order.

    Returns:
        The adjusted ones in the same order, each at least as large as it was, at most 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        # The smallest is compared with level / n, the next with level / (n - 1), ...; none may pass that a smaller one failed.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _check(counts: np.ndarray, odds: np.ndarray) -> None:
    if counts.shape != odds.shape or counts.ndim != 1:
        raise ValueError(f"counts {counts.shape} and odds {odds.shape} must be of one length")
    if abs(odds.sum() - 1) > 1e-6 or (odds < 0).any():
        raise ValueError(f"odds sum to {odds.sum():.6g}; they must be 0 or more and sum to 1")
    needed = samples_needed(odds)
    if (odds > 0).sum() > 1 and counts.sum() < needed:
        raise ValueError(
            f"{int(counts.sum())} samples are too few for a chi-square test over {int((odds > 0).sum())} values; {needed} are needed, "
            f"so that the rarest is expected {MIN_EXPECTED:g} times"
        )


def _upper_tail(statistic: float, freedom: int) -> float:
    if math.isinf(statistic):
        return 0.0
    # P(chi2(k) >= x) is the regularised upper incomplete gamma function Q(k / 2, x / 2).
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
