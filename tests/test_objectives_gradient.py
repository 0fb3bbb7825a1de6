"""The expected step of GRPO is the gradient of the expected reward, and is not when guidance is left out of the log-probabilities.

All 81 outcomes of each of four prompts are enumerated in float64 (`tests/objective_toys.py`); nothing of the objective is shared with that.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from math import comb

import pytest
import torch

from emu.training.objectives import GRPO
from tests.objective_toys import (
    PROMPTS,
    Enumerated,
    KnownOutcomes,
    cosine,
    cosine_error,
    grpo,
    sampled_gradient,
)

GROUP, GROUPS = 8, 64
BATCHES = dict(zip(PROMPTS, (24, 6, 6, 3), strict=True))
"""Batches of so many groups: rare successes need more."""
pytestmark = pytest.mark.slow


class Unguided(GRPO):
    """What public trainers do: draw with guidance, and score the prompt's side alone."""

    def scores(self, model, blocks, *, recompute=False):
        alone = replace(blocks, sampling=replace(blocks.sampling, guidance_scale=1.0))
        return super().scores(model, alone, recompute=recompute)


@pytest.fixture(scope="module")
def world(tiny_emu):
    emu = copy.deepcopy(tiny_emu)
    enumerated = {text: Enumerated(emu, text) for text in PROMPTS}
    return emu, enumerated, KnownOutcomes(enumerated)


def expected(world, weigh=lambda values, odds: values):
    _, enumerated, reward = world
    values = {text: reward.values(text, outcomes) for text, outcomes in enumerated.items()}
    return {
        text: outcomes.gradient(weigh(values[text], outcomes.log_probs.detach().exp()))
        for text, outcomes in enumerated.items()
    }


def measured(world, cls=GRPO, **options):
    """Mean gradient of each prompt, and the standard error of its cosine to what is expected."""
    emu, _, reward = world
    objective = grpo(emu, reward, cls, group_size=GROUP, **options)
    return {
        text: torch.stack([sampled_gradient(objective, emu, text, GROUPS, seed) for seed in range(count)])
        for text, count in BATCHES.items()
    }


def compare(found, exact, title):
    """Cosines of the mean over prompts and within each, with the standard error of the first."""
    within = {text: cosine(parts.mean(0), exact[text]) for text, parts in found.items()}
    least = min(map(len, found.values()))
    # As many parts of every prompt, each the mean of its share of the batches.
    parts = torch.stack(
        [
            sum(part.mean(0) for part in split)
            for split in zip(*(some.tensor_split(least) for some in found.values()), strict=True)
        ]
    )
    total = sum(exact.values())
    overall, error = cosine(sum(some.mean(0) for some in found.values()), total), cosine_error(parts, total)
    print(
        f"{title}: cosine {overall:.4f}, standard error {error:.4f}; within prompts",
        *map("{:.3f}".format, within.values()),
    )
    return overall, error, within


def test_the_step_is_the_gradient_of_the_expected_reward(world):
    assert [round(float(one.log_probs.exp().sum()), 9) for one in world[1].values()] == [1, 1, 1, 1]
    overall, error, within = compare(measured(world), expected(world), "guided")
    assert overall >= 0.99 and error < 0.003 and min(within.values()) >= 0.98


def test_without_guidance_in_the_log_probabilities_it_is_not(world):
    overall, error, _ = compare(measured(world, Unguided), expected(world), "unguided")
    assert overall + 3 * error <= 0.90


def test_divided_by_the_deviation_it_is_the_gradient_of_that_surrogate(world):
    def weigh(values, odds):
        """Expected advantage of an outcome beside seven others: rewards are 0 or 1, so that their number of ones is binomial."""
        share, others = float((values * odds).sum()), GROUP - 1
        chances = torch.tensor([comb(others, k) * share**k * (1 - share) ** (others - k) for k in range(GROUP)])
        mean = []
        for own in (0, 1):
            ones = torch.arange(GROUP, dtype=torch.float64) + own
            deviation = (ones * (GROUP - ones) / GROUP / (GROUP - 1)).sqrt()
            apart = own - (ones - own) / (GROUP - 1)
            mean.append((chances * torch.where(deviation > 0, apart / deviation, 0.0)).sum())
        return torch.where(values > 0, mean[1], mean[0])

    found = measured(world, divide_by_deviation=True)
    overall, error, within = compare(found, expected(world, weigh), "divided by the deviation")
    assert overall >= 0.99 and error < 0.003 and min(within.values()) >= 0.97
