"""Calibration against a world whose probabilities are known.

Two questions for any model, which enters as two functions: how many bits does it spend more than the best possible model (`score_task`),
and does what it samples follow the true odds where the prompt leaves something free (`measure_attributes`)? A third one guards the answers:
whether a document's bits depend on the documents beside it in a batch (`check_batch_independence`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emu.evaluation.statistics import (
    ChiSquare,
    Interval,
    chi_square_groups,
    excess_bits,
    mean,
    proportion,
    samples_needed,
)
from emu.worlds import HELD_OUT, Draws, World

Score = Callable[[str, Draws], np.ndarray]
"""(task, documents) -> (n,) bits that the model spends on each document's target."""
Sample = Callable[[str, np.ndarray, int], np.ndarray]
"""(task, (n,) numbers of the given variable, seed) -> (n,) numbers of the target variable, -1 for what no scene of the world looks like."""

ODDS_DIGITS = 9
"""Decimals to which odds of two prompts are equal: sums of floats in another order differ in the sixteenth."""
BATCH_BITS = 0.01
"""Difference in bits between a document scored alone and in a batch that rounding alone does not explain."""


class TooFewAnswers(ValueError):
    """So few of the samples are possible answers that their odds cannot be tested."""


@dataclass(frozen=True)
class TaskScore:
    """A model's bits on one task.

    Attributes:
        world: name of the world.
        task: name of the task.
        split: where the documents came from.
        floor: entropy of the target given the prompt, bits a document.
        exact: mean bits of the true distribution on these very documents; differs from the floor by chance alone.
        model: mean bits of the model on them.
        excess: mean of their difference.
    """

    world: str
    task: str
    split: str
    floor: float
    exact: float
    model: Interval
    excess: Interval

    @property
    def has_floor(self) -> bool:
        """Whether the prompt leaves anything uncertain."""
        return self.floor > 1e-9

    @property
    def relative(self) -> float:
        """Excess as a share of the floor; inf for tasks without uncertainty."""
        return self.excess.value / self.floor if self.has_floor else float("inf")

    @property
    def impossible(self) -> bool:
        """Whether the model does better than the truth, beyond four standard errors: it must see what it should predict."""
        error = (self.excess.high - self.excess.low) / (2 * 1.96)  # the interval is 1.96 standard errors to each side
        # A thousandth of a bit beside it, since tasks without uncertainty have an error of 0 and float32 rounds below the floor.
        return self.excess.value < -4 * error - 1e-3

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON types, with what follows from it."""
        return {
            **asdict(self),
            "relative": self.relative if self.has_floor else None,
            "impossible": self.impossible,
        }


@dataclass(frozen=True)
class AttributeTest:
    """Whether samples follow the true odds of something that the prompt leaves free.

    Attributes:
        world: name of the world.
        task: name of the task.
        attribute: what was counted.
        legal: share of the samples that the prompt allows at all.
        test: against the true odds, over all samples that show a scene and a value that the prompt allows. Wrong answers count too: what
            is hard to get right is not what is rare.
        observed: (k,) mean share of each value among the counted samples.
        expected: (k,) its true share for the same prompts.
    """

    world: str
    task: str
    attribute: str
    legal: Interval
    test: ChiSquare
    observed: tuple[float, ...]
    expected: tuple[float, ...]


def score_task(
    world: World, task: str, score: Score, n: int = 500, *, seed: int = 0, split: str = HELD_OUT
) -> TaskScore:
    """Compare a model's bits with the exact ones.

    Args:
        world: where documents come from.
        task: name of the task.
        score: the model.
        n: number of documents, 30 or more.
        seed: chooses the documents.
        split: where they come from.

    Raises:
        ValueError: an unknown task or split, too few documents, or a score of another length.
    """
    return score_kinds(world, task, score, n, seed=seed, split=split)[""]


def score_kinds(
    world: World, task: str, score: Score, n: int = 500, *, seed: int = 0, split: str = HELD_OUT
) -> dict[str, TaskScore]:
    """Likewise for all documents, under "", and for those of each kind of prompts (`World.prompt_kinds`) under its name.

    Kinds of fewer than 30 documents are left out, and all kinds of a split whose floors are not those of training.
    """
    world.task(task)
    if n < 30:
        raise ValueError(f"{n} documents are too few for a confidence interval; 30 are needed")
    draws = world.draw(seed, n, split)
    bits, exact = np.asarray(score(task, draws), np.float64), world.exact_bits(task, draws)
    if bits.shape != exact.shape:
        raise ValueError(f"the score of {n} documents has shape {bits.shape}; expected one number of bits each")
    kinds = world.kinds_of(task, draws.values(world.task(task).given))
    parts = {"": (np.ones(n, bool), world.floor(task))}
    if split == HELD_OUT and len(world.prompt_kinds) > 1:
        floors = world.floors(task)
        parts |= {name: (kinds == world.prompt_kinds.index(name), floor) for name, floor in floors.items()}
    return {
        name: TaskScore(
            world.name,
            task,
            split,
            floor,
            float(exact[some].mean()),
            mean(bits[some]),
            excess_bits(bits[some], exact[some]),
        )
        for name, (some, floor) in parts.items()
        if some.sum() >= 30
    }


def check_batch_independence(task: str, score: Score, draws: Draws) -> float:
    """Largest difference, in bits, between documents scored together and one by one: 0 for a model that keeps documents apart.

    Raises:
        ValueError: it is more than a hundredth of a bit: documents see each other.
    """
    together = np.asarray(score(task, draws))
    alone = np.concatenate([np.asarray(score(task, draws[i : i + 1])) for i in range(len(draws))])
    worst = float(np.abs(together - alone).max())
    if worst > BATCH_BITS:
        raise ValueError(
            f"a document of {task!r} costs {worst:.3f} bits more or less in a batch than alone; documents of a row see each other, "
            "check the document mask and the positions"
        )
    return worst


def measure_attributes(
    world: World,
    task: str,
    sample: Sample,
    attributes: Sequence[str],
    n: int = 2000,
    *,
    seed: int = 0,
    rules: Sequence[str] | None = None,
) -> list[AttributeTest]:
    """Sample answers to prompts of the world and test what the prompts leave free.

    Args:
        world: where prompts come from.
        task: name of the task.
        sample: the model.
        attributes: of the target, see `World.attributes`.
        n: number of samples.
        seed: chooses prompts and samples.
        rules: kinds of captions to prompt with; all by default.

    Raises:
        ValueError: an unknown task or attribute, or too few samples; the message says how many are needed. Checked before sampling.
        TooFewAnswers: almost nothing that was sampled is a possible answer.
    """
    given, odds_of = _prompts(world, task, attributes, n, seed, rules)
    if problems := [problem for name, odds in odds_of.items() for problem in sample_size_problems(name, odds)]:
        raise ValueError("; ".join(problems))
    target = np.asarray(sample(task, given, seed))
    if target.shape != given.shape:
        raise ValueError(f"{n} prompts gave samples of shape {target.shape}; expected one each")
    return [attribute_test(world, task, name, given, target) for name in attributes]


def attribute_problems(
    world: World, task: str, attributes: Sequence[str], n: int, *, seed: int = 0, rules: Sequence[str] | None = None
) -> list[str]:
    """Why `measure_attributes` would refuse these arguments, one sentence each; nothing is sampled from a model.

    Raises:
        ValueError: an unknown task or attribute.
    """
    _, odds_of = _prompts(world, task, attributes, n, seed, rules)
    found = [problem for name, odds in odds_of.items() for problem in sample_size_problems(name, odds)]
    return [f"{world.name} {task}: {problem}" for problem in found]


def sample_size_problems(name: str, truth: np.ndarray) -> list[str]:
    """What keeps prompts from testing an attribute, in a sentence that says how many samples are needed; none where they can.

    Args:
        name: of the attribute.
        truth: (n, values) odds of its values for each prompt.
    """
    groups, counts = np.unique(truth.round(ODDS_DIGITS), axis=0, return_counts=True)
    free = (groups > 0).sum(axis=1) > 1
    if not free.any():
        return [f"these prompts leave nothing of {name!r} free; there is nothing to test"]
    needed = np.array([samples_needed(odds) for odds in groups[free]])
    if (counts[free] >= needed).any():
        return []
    # The group that is easiest to fill decides; a tenth more, since its share of other prompts varies.
    least = int(np.ceil((needed * len(truth) / counts[free]).min() * 1.1))
    return [f"{len(truth)} samples are too few to test {name!r}; about {least} are needed"]


def _prompts(
    world: World, task: str, attributes: Sequence[str], n: int, seed: int, rules: Sequence[str] | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Prompts (n,) and, by attribute, the odds (n, values) of what they leave free."""
    given = world.draw(seed, n, HELD_OUT, rules=rules).values(world.task(task).given)
    return given, {name: world.attribute_odds(task, name, given) for name in attributes}


def attribute_test(world: World, task: str, name: str, given: np.ndarray, target: np.ndarray) -> AttributeTest:
    """Test an attribute of answers to prompts against its true odds.

    Args:
        world: where the prompts come from.
        task: name of the task.
        name: of the attribute, see `World.attributes`.
        given: (n,) int64 prompts.
        target: (n,) int64 answers, -1 for what no scene of the world looks like.

    Raises:
        TooFewAnswers: almost nothing of it is a possible answer.
    """
    truth = world.attribute_odds(task, name, given)
    legal = np.isfinite(world.log2_probability(task, target, given))
    value, width = world.attribute_values(task, name, target, given), truth.shape[1]
    # Impossible values say that an answer is wrong, which `legal` counts; the test asks how the possible ones are distributed.
    shown = (value >= 0) & (value < width)
    shown[shown] = truth[np.flatnonzero(shown), value[shown]] > 0
    counted, prompts, groups = np.zeros(width), np.zeros(width), []
    # Prompts of equal odds are one group of a chi-square test: single prompts come too rarely for tests of their own.
    odds_of_group, member = np.unique(truth.round(ODDS_DIGITS), axis=0, return_inverse=True)
    for number, odds in enumerate(odds_of_group):
        if (odds > 0).sum() < 2:
            continue
        odds = odds / odds.sum()  # rounding took the sum away from 1
        some = (member.ravel() == number) & shown
        if some.sum() < samples_needed(odds):
            continue
        counts = np.bincount(value[some], minlength=width)
        groups.append((counts, odds))
        counted, prompts = counted + counts, prompts + odds * some.sum()
    if not groups:
        raise TooFewAnswers(
            f"of {len(target)} samples only {int(shown.sum())} show a possible {name}, too few to test it; train longer, or take more"
        )
    total = counted.sum()
    return AttributeTest(
        world.name,
        task,
        name,
        proportion(legal),
        chi_square_groups(groups),
        tuple(counted / total),
        tuple(prompts / total),
    )
