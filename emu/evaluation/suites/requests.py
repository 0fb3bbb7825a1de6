"""The suites "edits", "examples", "fills" and "rates": requests whose right answers are known, and the odds of what they leave free."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emu.evaluation.answers import Answers, adjusted, ask, free_tests, judged, shares
from emu.evaluation.calibration import TaskScore, attribute_problems, score_kinds, score_task
from emu.evaluation.measures import Measure
from emu.evaluation.models import ModelSample, ModelScore
from emu.evaluation.statistics import Interval, proportion
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.evaluation.suites.calibration import describe_score
from emu.evaluation.suites.worlds import WorldModel, WorldSuite
from emu.worlds import COMBINATIONS, FillWorld
from emu.worlds.examples import BY_EXAMPLE, WITHOUT

SEEDS = 3
"""Seeds of prompts and answers, from the suite's own on."""


@dataclass(frozen=True)
class AskedTask:
    """What a suite asks.

    Attributes:
        world, task: their names.
        attributes: what is tested of what prompts leave free.
    """

    world: str
    task: str
    attributes: tuple[str, ...] = ()


class RequestSuite(WorldSuite):
    """Excess over the floor, right answers, cells that had to stay, and tests of what is left free, adjusted for their number by Holm.

    Attributes:
        questions: what is asked, where the model was trained on it.
    """

    questions: tuple[AskedTask, ...] = ()

    def prepare(self, request: argparse.Namespace) -> WorldModel:
        """Read the model as `WorldSuite` does.

        Raises:
            ValueError: also where the model was trained on none of the suite's tasks, or there are too few samples for a test.
        """
        subject = super().prepare(request)
        check_questions(self.known(subject), self.questions, subject)
        return subject

    def known(self, subject: WorldModel) -> list[AskedTask]:
        """The questions that the model was trained on."""
        return [question for question in self.questions if subject.knows(question.world, question.task)]

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`; the exit code is 1 where the model's bits lie below what is possible."""
        scores: dict[str, TaskScore] = {}
        found: dict[str, Interval] = {}
        tests: list[dict[str, Any]] = []
        for question in self.known(subject):
            name = f"{question.world}/{question.task}"
            for key, score in measure_bits(question, subject).items():
                scores[name + key] = score
                log(f"{name}{key}: {describe_score(score)}")
            answers = ask_seeds(question, subject)
            for what, share in self.measure(question, subject, answers).items():
                head, slash, tail = what.partition("/")
                found[f"{head}/{name}{slash}{tail}"] = share
                log(f"{head}/{name}{slash}{tail}: {share}")
            more, problems = free_tests(answers, question.attributes)
            tests += more
            for problem in problems:
                log(problem)
        tests = adjusted(tests)
        for test in tests:
            log(describe_test(test))
        return report(scores, found, tests)

    def measure(self, question: AskedTask, subject: WorldModel, answers: Sequence[Answers]) -> dict[str, Interval]:
        """Shares by what they are of; a suite adds its own."""
        found = shares(answers)
        if answers[0].world.held_out.any():
            unseen = ask(
                sample_of(question, subject), question.task, subject.options.samples, subject.options.seed, COMBINATIONS
            )
            found |= {
                f"{what}/combinations": share for what, share in shares([unseen]).items() if what in ("right", "kept")
            }
        return found


class EditsSuite(RequestSuite):
    """Pictures of one and of two objects, edited by words."""

    summary = "pictures edited by words: bits above the floor, right, what had to stay, what is left free"
    questions = (AskedTask("edit-one", "edit", ("place", "size")), AskedTask("edit-two", "edit", ("object",)))


class ExamplesSuite(RequestSuite):
    """Pictures edited by example, and the same without the example, which nobody can."""

    summary = "pictures edited by one example without words, and how often that succeeds without the example"
    questions = (AskedTask("examples", BY_EXAMPLE), AskedTask("examples", WITHOUT, ("edit",)))

    def measure(self, question: AskedTask, subject: WorldModel, answers: Sequence[Answers]) -> dict[str, Interval]:
        """See `RequestSuite`; without the example an answer is right where it is that of the example that was not shown."""
        found = super().measure(question, subject, answers)
        if question.task == WITHOUT:
            found["guessed"] = proportion(np.concatenate([some.true for some in answers]))
        return found


class FillsSuite(RequestSuite):
    """Pictures with a hidden rectangle, and a control: whole pictures drawn from the caption, with what is shown put over them."""

    summary = "hidden rectangles filled in: bits above the floor, right, what had to stay, what is left free"
    questions = (AskedTask("fill-one", "fill", ("place", "size", "object")), AskedTask("fill-two", "fill", ("place",)))

    def measure(self, question: AskedTask, subject: WorldModel, answers: Sequence[Answers]) -> dict[str, Interval]:
        """See `RequestSuite`."""
        found = super().measure(question, subject, answers)
        plain = question.world.removeprefix("fill-")
        if subject.knows(plain, "text-to-image"):
            found["right/overwritten"] = overwritten(answers[0], subject, plain, question.world)
        return found


class RatesSuite(RequestSuite):
    """Clips at three rates, whose motion from picture to picture follows from the rate."""

    summary = "clips at three rates: bits above the floor at each, right, what is left free"
    questions = (
        AskedTask("rates", "text-to-video", ("start", "pace")),
        AskedTask("rates", "continuation", ("ending",)),
    )


def check_questions(known: Sequence[AskedTask], asked: Sequence[AskedTask], subject: WorldModel) -> None:
    """Raise Unsuited where a model was trained on nothing that is asked, ValueError for too few samples; the message lists all."""
    if not known:
        names = ", ".join(f"{question.world}/{question.task}" for question in asked)
        raise Unsuited(f"this model was trained on none of {names}; train one with emu fit --config shapes-edit")
    problems: list[str] = []
    for question in known:
        world, options = subject.documents[question.world].world, subject.options
        problems += attribute_problems(world, question.task, question.attributes, options.samples, seed=options.seed)
    if problems:
        raise ValueError("give more with --samples:" + "".join(f"\n  - {problem}" for problem in problems))


def sample_of(question: AskedTask, subject: WorldModel) -> ModelSample:
    """The model as it answers prompts of a world."""
    return ModelSample(subject.engine, subject.documents[question.world], subject.options.guidance_scale)


def ask_seeds(question: AskedTask, subject: WorldModel) -> list[Answers]:
    """Answers of `SEEDS` seeds."""
    options, sample = subject.options, sample_of(question, subject)
    return [ask(sample, question.task, options.samples, options.seed + seed) for seed in range(SEEDS)]


def measure_bits(question: AskedTask, subject: WorldModel) -> dict[str, TaskScore]:
    """Scores by what is added to the name of the task: "" for held-out documents, "/<kind>" of them, "/combinations"."""
    documents, options = subject.documents[question.world], subject.options
    world, score = documents.world, ModelScore(subject.model, documents)
    amount, seed = options.documents, options.seed
    found = score_kinds(world, question.task, score, amount, seed=seed)
    found = {f"/{name}" if name else "": one for name, one in found.items()}
    if world.held_out.any():
        found["/combinations"] = score_task(world, question.task, score, amount, seed=seed, split=COMBINATIONS)
    return found


def overwritten(answers: Answers, subject: WorldModel, plain: str, filled: str) -> Interval:
    """Share of right pictures that were drawn whole from captions that name what is hidden, with the shown cells put over them."""
    documents, drawn = subject.documents[filled], subject.documents[plain]
    world = documents.world
    assert isinstance(world, FillWorld)
    kinds = np.array(world.prompt_kinds)[world.kinds_of(answers.task, answers.given)]
    rows = np.flatnonzero([kind.startswith("named") and not kind.endswith(" 0 hidden") for kind in kinds])
    draws, given = answers.draws[rows], answers.given[rows]
    number_of = {drawn.world.captions.text(number): number for number in range(len(drawn.world.captions))}
    captions = np.array([number_of[caption] for caption in draws.captions])
    sample = ModelSample(subject.engine, drawn, subject.options.guidance_scale)
    codes = sample.codes("text-to-image", captions, answers.seed)
    shown, hidden = documents.codes("picture", world.completed(given)), documents.hidden(given)
    hidden = hidden.view(*hidden.shape, *[1] * (codes.ndim - hidden.ndim))  # one for all codes of a cell
    return proportion(judged(documents, answers.task, answers.seed, draws, codes.where(hidden, shown)).right)


def report(scores: dict[str, TaskScore], found: dict[str, Interval], tests: list[dict[str, Any]]) -> Report:
    """Tables and figures: "excess/<task>" in bits, "share/..." of the floor, "right/...", "kept/...", "p/.../<seed>" by Holm.

    What is of one kind of prompts, or of held-out combinations, has its name after that of the task.
    """
    figures: dict[str, float] = {}
    for name, score in scores.items():
        figures[f"excess/{name}"] = round(score.excess.value, 4)
        if score.has_floor:
            figures[f"share/{name}"] = round(score.relative, 4)
    figures |= {name: round(share.value, 4) for name, share in found.items()}
    for test in tests:
        figures[f"p/{test['world']}/{test['task']}/{test['attribute']}/{test['seed']}"] = test["adjusted"]
    table = {
        "scores": {name: score.to_dict() for name, score in scores.items()},
        "shares": {name: asdict(share) for name, share in found.items()},
        "tests": tests,
    }
    measures = {f"excess/{name}": Measure(score.excess) for name, score in scores.items()}
    measures |= {name: Measure(share) for name, share in found.items()}
    impossible = any(score.impossible for score in scores.values())
    return Report(table, figures, exit_code=int(impossible), measures=measures)


def describe_test(test: dict[str, Any]) -> str:
    """A test's result in a line."""
    about = f"{test['world']} {test['task']}, {test['attribute']}, seed {test['seed']}"
    verdict = "" if test["passes"] else "  NOT the true odds"
    return f"{about}: p = {test['test']['p_value']:.3g}, by Holm {test['adjusted']:.3g} ({test['test']['count']} counted){verdict}"
