"""A model's answers to prompts of a world: which are right, which kept what had to stay, and whether the rest follows its true odds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from emu.evaluation.calibration import TooFewAnswers, attribute_test
from emu.evaluation.models import ModelSample
from emu.evaluation.statistics import Interval, holm, proportion
from emu.worlds import HELD_OUT, Draws, RequestWorld, World, tiles
from emu.worlds.scene_documents import WorldDocuments

LEVEL = 1e-3
"""Adjusted p-values below this say that answers do not follow the true odds."""


@dataclass(frozen=True)
class Answers:
    """Answers to the prompts of documents.

    Attributes:
        world: where the documents come from.
        task: name of the task.
        seed: of the documents and of the answers.
        draws: the documents.
        target: (n,) int64 numbers of the answers, -1 for what no scene of the world looks like.
        right: (n,) bool whether the world gives such an answer to the prompt.
        kept: (n,) bool whether every cell that had to stay did; None where there is no such thing.
    """

    world: World
    task: str
    seed: int
    draws: Draws
    target: np.ndarray
    right: np.ndarray
    kept: np.ndarray | None

    @property
    def given(self) -> np.ndarray:
        """(n,) int64 the prompts."""
        return self.draws.values(self.world.task(self.task).given)

    @property
    def true(self) -> np.ndarray:
        """(n,) bool whether an answer is that of the very document, not only a possible one."""
        return self.target == self.draws.values(self.world.task(self.task).target)


def ask(sample: ModelSample, task: str, n: int, seed: int, split: str = HELD_OUT) -> Answers:
    """Have a model answer the prompts of documents.

    Args:
        sample: the model, with the documents of a world.
        task: name of the task.
        n: number of documents.
        seed: chooses the documents, and the answers.
        split: where the documents come from.
    """
    world = sample.documents.world
    draws = world.draw(seed, n, split)
    given = draws.values(world.task(task).given)
    if isinstance(world, RequestWorld):
        return judged(sample.documents, task, seed, draws, sample.codes(task, given, seed))
    target = sample(task, given, seed)
    right = np.isfinite(world.log2_probability(task, target, given, full=True))
    return Answers(world, task, seed, draws, target, right, None)


def judged(documents: WorldDocuments, task: str, seed: int, draws: Draws, codes: Tensor) -> Answers:
    """Answers to requests from the codes (n, h, w) of pictures."""
    world = documents.world
    assert isinstance(world, RequestWorld)
    cells = tiles.read(documents.pixels(codes))
    verdict = world.judge(task, draws.values(world.task(task).given), cells)
    return Answers(world, task, seed, draws, world.numbers_of(cells), verdict.right, verdict.kept)


def shares(answers: Sequence[Answers]) -> dict[str, Interval]:
    """Share of right answers over several seeds: "right" of all, "right/<kind>" by kind of prompt, and "kept" of kept cells."""
    first, right = answers[0], np.concatenate([some.right for some in answers])
    kinds = np.concatenate([some.world.kinds_of(some.task, some.given) for some in answers])
    found = {"right": proportion(right)}
    for number, name in enumerate(first.world.prompt_kinds):
        if (kinds == number).any() and len(first.world.prompt_kinds) > 1:
            found[f"right/{name}"] = proportion(right[kinds == number])
    kept = [some.kept for some in answers if some.kept is not None]
    return found | ({"kept": proportion(np.concatenate(kept))} if kept else {})


def free_tests(answers: Sequence[Answers], attributes: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Test attributes of what prompts leave free, once for each seed.

    Returns:
        The tests as JSON types, each with its seed, and why others could not be made.
    """
    tests, problems = [], []
    for some in answers:
        for name in attributes:
            try:
                test = attribute_test(some.world, some.task, name, some.given, some.target)
            except TooFewAnswers as problem:
                problems.append(f"{some.world.name} {some.task}, seed {some.seed}: not tested, {problem}")
                continue
            tests.append({**asdict(test), "seed": some.seed})
    return tests, problems


def adjusted(tests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with "adjusted", their p-values by Holm over all of them, and "passes", whether that is above `LEVEL`."""
    p_values = holm([test["test"]["p_value"] for test in tests])
    return [{**test, "adjusted": p, "passes": p > LEVEL} for test, p in zip(tests, p_values, strict=True)]
