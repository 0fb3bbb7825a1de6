"""The suite "vqa": questions about pictures and clips, answered in the template that generation uses and compared exactly."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import find_model_folder
from emu.evaluation.measures import Measure, figures_of, grouped_shares
from emu.evaluation.question_sets import QuestionSet, ask, file_questions, world_questions
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.pipeline import Emu
from emu.worlds import COMBINATIONS, HELD_OUT, World, moving, standard_worlds
from emu.worlds.question_data import QUESTIONS
from emu.worlds.training_data import WORLDS_FILE
from emu_tokenizers.files import read_json

MIN_QUESTIONS = 30
USUAL_SIZE = (32, 32)
"""Of pictures, where neither the model's folder nor its defaults say one."""
EXAMPLES = 6
"""Wrong answers of each set that the report shows."""


@dataclass(frozen=True)
class VqaSubject:
    """A model and what it is asked.

    Attributes:
        emu: the model.
        sets: the questions.
        seed: that chose them.
    """

    emu: Emu
    sets: Sequence[QuestionSet]
    seed: int


class VqaSuite:
    """What, where, how many, which way, how often did it bounce: questions about scenes that training never drew."""

    summary = "questions about pictures and clips, of the worlds or of a file, answers compared exactly"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        add = parser.add_argument
        add(
            "--worlds",
            help="ask about these worlds, one,two,moving (default: those that the model was trained to speak of)",
        )
        add("--questions-file", type=Path, metavar="FILE", help='ask these instead: lines of {"messages": [...]}')
        add("--questions", type=int, default=1000, help="about each world and split (default: %(default)s)")
        add("--seed", type=int, default=0, help="of the questions (default: %(default)s)")

    def prepare(self, request: argparse.Namespace) -> VqaSubject:
        """Read the model and make the questions.

        Raises:
            Unsuited: the model says of no world that it was trained to speak of it, and no questions are named.
            FileNotFoundError, ValueError: no such model, world or file, or too few questions.
        """
        if request.worlds is not None and request.questions_file is not None:
            raise ValueError("--worlds and --questions-file were both given; ask about one of them at a time")
        if request.questions < MIN_QUESTIONS:
            raise ValueError(f"{request.questions} questions are too few for an interval; {MIN_QUESTIONS} are needed")
        emu = Emu.from_pretrained(request.model)
        if request.questions_file is not None:
            return VqaSubject(emu, [file_questions(request.questions_file, emu)], request.seed)
        told = worlds_table(request.model)
        names = told.get(QUESTIONS, []) if request.worlds is None else request.worlds.split(",")
        if not names:
            raise Unsuited(
                f"{request.model} was not trained to answer questions about a world; name worlds with --worlds one,two,moving, or a "
                "file with --questions-file"
            )
        worlds = asked_worlds(names, emu, bool(told.get("unseen_kinds")))
        check_fingerprints(request.model, worlds, told)
        size = int(told.get("size", 0)) or (emu.defaults.size or USUAL_SIZE)[0]
        sets = [
            world_questions(name, world, size, request.questions, request.seed, split)
            for name, world in worlds.items()
            for split in [HELD_OUT, *([COMBINATIONS] if world.held_out.any() else [])]
        ]
        return VqaSubject(emu, sets, request.seed)

    def run(self, subject: VqaSubject, log: Log) -> Report:
        """See `Suite`; the exit code is 1 where lines of a file were left out."""
        measures: dict[str, Measure] = {}
        table: dict[str, Any] = {}
        left_out = 0
        for questions in subject.sets:
            right, said = ask(subject.emu, questions)
            found = grouped_shares(f"vqa/{questions.name}", right, questions.kinds, questions.identity)
            table[questions.name] = {
                "shares": {name: share.to_dict() for name, share in found.items()},
                "chance": questions.chance,
                "wrong": wrong_answers(questions, right, said),
                "left_out": [list(map(str, problem)) for problem in questions.problems],
            }
            for name, share in found.items():
                log(f"{name}: {share} of {share.interval.count}")
            for reason, count in Counter(problem.reason for problem in questions.problems).items():
                log(f"left out {count} lines of {questions.name}: {reason}")
            measures |= found
            left_out += len(questions.problems)
        return Report(table, figures_of(measures), exit_code=int(left_out > 0), measures=measures)


def worlds_table(model: str) -> Mapping[str, Any]:
    """What a model's folder says of the worlds that it was trained on; nothing where it says nothing."""
    file = find_model_folder(model) / WORLDS_FILE
    return read_json(file) if file.is_file() else {}


def asked_worlds(names: Iterable[str], emu: Emu, unseen_kinds: bool) -> dict[str, World]:
    """Worlds by name, clips with as many frames a step as the model's tokenizer joins.

    Raises:
        ValueError: a name of no world that can be asked about, or a model without a vision tokenizer.
    """
    if emu.tokenizer.vision is None:
        raise ValueError("the model has no vision tokenizer; questions are about pictures and clips")
    known = standard_worlds(unseen_kinds)
    known["moving"] = moving(4, emu.tokenizer.vision.temporal_factor)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no questions are known about the world {unknown[0]!r}; expected some of {', '.join(known)}")
    return {name: known[name] for name in names}


def check_fingerprints(model: str, worlds: Mapping[str, World], told: Mapping[str, Any]) -> None:
    """Raise ValueError where a model was trained on another world of the same name: its held-out scenes are not these."""
    for name, world in worlds.items():
        trained = told.get("worlds", {}).get(name)
        if trained is not None and trained != world.fingerprint():
            raise ValueError(
                f"{model} was trained on the world {name!r} of fingerprint {trained}, this library asks about that of "
                f"{world.fingerprint()}; what is held out differs, so its answers say nothing"
            )


def wrong_answers(questions: QuestionSet, right: Any, said: Sequence[str]) -> list[dict[str, str]]:
    """The first wrong answers."""
    rows = [i for i, hit in enumerate(right) if not hit][:EXAMPLES]
    return [
        {"question": str(questions.documents[i][-1]), "answer": questions.answers[i], "said": said[i]} for i in rows
    ]
