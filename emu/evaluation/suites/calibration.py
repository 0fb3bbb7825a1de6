"""The suite "calibration": bits above the known floor of every task, and the odds of what prompts leave free."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from emu.evaluation.calibration import (
    AttributeTest,
    TaskScore,
    TooFewAnswers,
    attribute_problems,
    check_batch_independence,
    measure_attributes,
    score_task,
)
from emu.evaluation.measures import Measure
from emu.evaluation.models import ModelSample, ModelScore
from emu.evaluation.plots import odds_picture
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.worlds import WorldModel, WorldSuite
from emu.worlds import COMBINATIONS, HELD_OUT

ATTRIBUTES = (
    ("one", "text-to-image", ("place", "size"), ("plain",)),
    ("two", "text-to-image", ("place",), ("plain",)),
    ("moving", "text-to-video", ("start", "turns"), None),
    ("moving", "continuation", ("turns",), None),
    ("one", "image-to-text", ("template",), None),
    ("two", "image-to-text", ("template",), None),
)
"""(world, task, attributes, kinds of captions) whose odds are tested."""
GUIDED = (1.0, 3.0)
"""Guidance scales at which pictures of a caption are tested: the model as it is, and as it is used."""
MAX_VALUES = 64
"""Attributes of more values are tested and not drawn."""


class CalibrationSuite(WorldSuite):
    """Excess bits of every task on held-out scenes and combinations, and the odds of what prompts leave free."""

    summary = "bits above the floor that no model can beat, odds of what prompts leave free"

    def prepare(self, request: argparse.Namespace) -> WorldModel:
        """Read the model as `WorldSuite` does.

        Raises:
            ValueError: also where there are too few samples for a test; the message lists every test and what it needs.
        """
        subject = super().prepare(request)
        check_samples(subject)
        return subject

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`; the exit code is 1 where the model's bits lie below what is possible."""
        scores, tests = score_tasks(subject, log), measure_odds(subject, log)
        table = {"scores": [score.to_dict() for score in scores], "tests": tests}
        shown = [test for test in tests if len(test["expected"]) <= MAX_VALUES]
        impossible = any(score.impossible for score in scores)
        figures = figures_of(scores, tests)
        measures = {name_of(score): Measure(score.excess) for score in scores}
        return Report(table, figures, odds_picture(shown), int(impossible), measures)


def check_samples(subject: WorldModel) -> None:
    """Raise ValueError where there are too few samples for one of the tests; the message lists them all."""
    problems: list[str] = []
    for name, task, attributes, rules in ATTRIBUTES:
        if subject.knows(name, task):
            world, options = subject.documents[name].world, subject.options
            problems += attribute_problems(world, task, attributes, options.samples, seed=options.seed, rules=rules)
    if problems:
        raise ValueError("give more with --samples:" + "".join(f"\n  - {problem}" for problem in problems))


def score_tasks(subject: WorldModel, log: Log) -> list[TaskScore]:
    """Bits of every task that the model was trained on, in each split that its world has."""
    options = subject.options
    scores: list[TaskScore] = []
    for some in subject.documents.values():
        score = ModelScore(subject.model, some)
        splits = [HELD_OUT, *([COMBINATIONS] if some.world.held_out.any() else [])]
        check_batch_independence(some.tasks[0], score, some.world.draw(options.seed, 8, HELD_OUT))
        for task in some.tasks:
            for split in splits:
                scores.append(score_task(some.world, task, score, options.documents, seed=options.seed, split=split))
                log(describe_score(scores[-1]))
    return scores


def measure_odds(subject: WorldModel, log: Log, scales: Sequence[float] = GUIDED) -> list[dict[str, Any]]:
    """Results of the tests of `ATTRIBUTES`, as JSON types, each with its guidance scale; pictures of a caption at several."""
    options = subject.options
    tests: list[dict[str, Any]] = []
    for name, task, attributes, rules in ATTRIBUTES:
        if not subject.knows(name, task):
            continue
        world = subject.documents[name].world
        for scale in scales if task == "text-to-image" else (1.0,):
            sample = ModelSample(subject.engine, subject.documents[name], scale)
            try:
                found = measure_attributes(
                    world, task, sample, attributes, options.samples, seed=options.seed, rules=rules
                )
            except TooFewAnswers as problem:
                log(f"{world.name} {task} at guidance {scale:g}: not tested, {problem}")
                continue
            for test in found:
                tests.append({**asdict(test), "guidance_scale": scale})
                log(describe_test(test, scale))
    return tests


def figures_of(scores: Sequence[TaskScore], tests: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures by name.

    Those of scores are "excess/<world>/<task>" in bits a document and "share/..." of the floor, both with "/combinations" after them for
    held-out combinations; those of tests "p/<world>/<task>/<attribute>/<guidance scale>".
    """
    figures: dict[str, float] = {}
    for score in scores:
        name = name_of(score)
        figures[name] = round(score.excess.value, 4)
        if score.has_floor:
            figures[name.replace("excess", "share", 1)] = round(score.relative, 4)
    for test in tests:
        name = f"{test['world']}/{test['task']}/{test['attribute']}/{test['guidance_scale']:g}"
        figures[f"p/{name}"] = test["test"]["p_value"]
    return figures


def name_of(score: TaskScore) -> str:
    """Name of the figure of a score's excess."""
    return f"excess/{score.world}/{score.task}" + ("" if score.split == HELD_OUT else "/combinations")


def describe_score(score: TaskScore) -> str:
    """A task's score in a line."""
    share = f" ({score.relative:+.1%})" if score.has_floor else ""
    note = "  IMPOSSIBLE: below the floor, the model sees its answer" if score.impossible else ""
    bits = f"floor {score.floor:.3f}, model {score.model.value:.3f}, excess {score.excess}{share}"
    return f"{score.world} {score.task} [{score.split}]: {bits}{note}"


def describe_test(test: AttributeTest, guidance_scale: float) -> str:
    """A test's result in a line."""
    return (
        f"{test.world} {test.task} at guidance {guidance_scale:g}, {test.attribute}: {test.test}, possible answers {test.legal} "
        f"({test.test.count} counted)"
    )
