"""Intervals and tests: known values, coverage, and what they refuse."""

import numpy as np
import pytest

from emu.evaluation.statistics import (
    chi_square,
    chi_square_groups,
    entropy_bits,
    excess_bits,
    mean,
    paired_difference,
    proportion,
    quantile,
    samples_needed,
)


def test_chi_square_agrees_with_tables():
    for statistic, freedom, p in ((3.841459, 1, 0.05), (24.995790, 15, 0.05), (37.697298, 15, 0.001)):
        odds = np.full(freedom + 1, 1 / (freedom + 1))
        count = 6000 * (freedom + 1)
        counts = count * odds
        shift = np.sqrt(statistic * counts[0] / 2)
        counts[0] += shift
        counts[1] -= shift
        test = chi_square(counts, odds)
        assert test.freedom == freedom
        assert test.statistic == pytest.approx(statistic)
        assert test.p_value == pytest.approx(p, rel=1e-4)


def test_p_values_of_true_odds_are_uniform():
    rng = np.random.default_rng(0)
    odds = np.array([0.5, 0.3, 0.15, 0.05])
    values = np.sort([chi_square(rng.multinomial(1000, odds), odds).p_value for _ in range(1000)])
    assert np.abs(values - (np.arange(1000) + 0.5) / 1000).max() < 0.06


def test_groups_with_different_odds_add_up():
    rng = np.random.default_rng(0)
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.3, 0.5])
    test = chi_square_groups([(rng.multinomial(500, first), first), (rng.multinomial(500, second), second)])
    assert test.freedom == 3 and test.count == 1000 and test.p_value > 1e-3


def test_seeing_the_impossible_rejects():
    assert chi_square(np.array([60, 39, 1]), np.array([0.5, 0.5, 0.0])).p_value == 0


def test_too_few_samples_say_how_many_are_needed():
    odds = np.full(16, 1 / 16)
    assert samples_needed(odds) == 80
    with pytest.raises(ValueError, match="79 samples are too few.*80 are needed"):
        chi_square(np.append(np.full(15, 5), 4), odds)
    chi_square(np.full(16, 5), odds)


def test_odds_must_sum_to_one_and_leave_something_free():
    with pytest.raises(ValueError, match="sum to 0.9"):
        chi_square(np.array([500, 500]), np.array([0.5, 0.4]))
    with pytest.raises(ValueError, match="nothing to test"):
        chi_square(np.array([500]), np.array([1.0]))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    shares = [proportion(rng.random(50) < 0.9) for _ in range(1000)]
    means = [mean(rng.exponential(1, 200)) for _ in range(1000)]
    assert 0.92 < np.mean([found.low <= 0.9 <= found.high for found in shares]) < 0.98
    assert 0.91 < np.mean([found.low <= 1.0 <= found.high for found in means]) < 0.98
    assert quantile(0.95) == pytest.approx(1.959964, abs=1e-6)


def test_a_share_stays_between_zero_and_one():
    assert proportion(np.ones(20, bool)).high == 1 and proportion(np.zeros(20, bool)).low == 0
    assert proportion(np.ones(20, bool)).low < 0.9


def test_excess_is_the_mean_difference():
    exact = np.random.default_rng(0).exponential(5, 400)
    found = excess_bits(exact + 0.25, exact)
    assert found.value == pytest.approx(0.25) and found.high - found.low < 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean(np.zeros(29)), "29 observations.*at least 30"),
        (lambda: mean(np.full(40, np.nan)), "not a number"),
        (lambda: proportion(np.zeros(0, bool)), "at least one"),
        (lambda: excess_bits(np.zeros(40), np.zeros(41)), "score the same documents"),
        (lambda: quantile(1.0), "between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SIMULATIONS = 2000


def coverage(intervals, truth):
    """Share of intervals that hold the truth."""
    held = [found.low <= truth <= found.high for found in intervals]
    assert len(held) == SIMULATIONS
    return np.mean(held)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.88, 0.95, 0.98])
def test_intervals_of_shares_cover_93_to_97_percent_in_2000_simulations(share):
    draws = np.random.default_rng(1).random((SIMULATIONS, 1000)) < share
    assert 0.93 <= coverage(map(proportion, draws), share) <= 0.97


def test_intervals_of_means_and_of_paired_differences_cover_93_to_97_percent_in_2000_simulations():
    rng = np.random.default_rng(2)
    assert 0.93 <= coverage(map(mean, rng.exponential(1.0, (SIMULATIONS, 400))), 1.0) <= 0.97
    hard = rng.random((SIMULATIONS, 500))  # what an item asks of both models
    skill = rng.normal(scale=0.15, size=(2, SIMULATIONS, 500))
    ours, theirs = hard + skill[0] < 0.8, hard + skill[1] < 0.7
    truth = np.mean(ours) - np.mean(theirs)  # of a million items, so that its own error is a hundredth of an interval
    found = [paired_difference(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert 0.93 <= coverage(found, truth) <= 0.97


def test_paired_intervals_are_narrower_than_those_of_two_means_apart():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)
    ours, theirs = hard + 0.1 * rng.normal(size=(2, 400))
    found, apart = paired_difference(ours, theirs), mean(ours)
    assert found.high - found.low < 0.25 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="compare models on the same items"):
        paired_difference(np.zeros(40), np.zeros(41))


@pytest.mark.parametrize(("odds", "count"), [([1 / 32] * 32, 200), ([0.4, 0.3, 0.2, 0.05, 0.05], 100)])
def test_entropy_after_miller_and_madow_is_right_where_the_plain_one_is_too_low(odds, count):
    rng = np.random.default_rng(0)
    truth = -sum(p * np.log2(p) for p in odds)
    corrected, plain = [], []
    for counts in rng.multinomial(count, odds, SIMULATIONS):
        shares = counts[counts > 0] / count
        corrected.append(entropy_bits(counts))
        plain.append(-(shares * np.log2(shares)).sum())
    error, bias = np.mean(corrected) - truth, np.mean(plain) - truth
    assert abs(error) < 0.01 and bias < -0.02 and abs(error) < abs(bias) / 5
    assert entropy_bits(np.array([7, 0, 0])) == 0
    with pytest.raises(ValueError, match="at least one"):
        entropy_bits(np.zeros(3))
