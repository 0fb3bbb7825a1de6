"""Questions about pictures and clips with their answers: from worlds, or from a file of conversations of the form that training reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu.data.tokenizing.conversations import check_messages
from emu.data.tokenizing.document_reader import DocumentReader
from emu.documents import Text, Video
from emu.lines import BadLine, Line, LineProblem, Place, message_of, read_lines, reason_of, shown
from emu.pipeline import Emu
from emu.worlds import COMBINATIONS, HELD_OUT, BallWorld, World
from emu.worlds.moving import PICTURES_PER_SECOND
from emu.worlds.questions import Asked, WorldQuestions

AT_A_TIME, ON_GPU = 64, 1024
"""Questions that are answered together, unless memory holds fewer."""
SPARE_TOKENS = 4
"""Tokens that an answer may have beyond the longest right one: whatever is longer is wrong."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one origin.

    Attributes:
        name: what figures call it.
        documents: what is asked, each a list of a picture or a clip and words, as `Emu.generate_text` takes them.
        answers: the right answers.
        kinds: what each question is about.
        chance: share that is right without looking; None where nobody knows.
        problems: what was left out of a file.
    """

    name: str
    documents: Sequence[Sequence[Any]]
    answers: Sequence[str]
    kinds: Sequence[str]
    chance: float | None = None
    problems: Sequence[LineProblem] = field(default=())

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells these questions from others."""
        return self.name, [document[-1] for document in self.documents], list(self.answers)


def world_questions(name: str, world: World, size: int, n: int, seed: int, split: str = HELD_OUT) -> QuestionSet:
    """Questions about scenes of a world that training never drew.

    Args:
        name: of the world; that of the set where the split is of held-out combinations has "/combinations" after it.
        world: of still pictures or of a rolling ball.
        size: pixels along a picture.
        n: number of questions.
        seed: chooses them.
        split: where the scenes come from.

    Raises:
        ValueError: there are no questions about this world, or another size or split; see `WorldQuestions`.
    """
    questions = WorldQuestions(world)
    asked = questions.draw(seed, n, split)
    shown_items = _shown(world, asked, size)
    return QuestionSet(
        name + ("/combinations" if split == COMBINATIONS else ""),
        [[item, text] for item, text in zip(shown_items, asked.texts, strict=True)],
        asked.answers,
        [questions.names[kind] for kind in asked.kinds],
        float((1 / asked.choices).mean()),
    )


def _shown(world: World, asked: Asked, size: int) -> list[Any]:
    pixels = world.render(asked.rows, size)
    if isinstance(world, BallWorld):
        return [Video(frames, PICTURES_PER_SECOND * world.frames_per_step) for frames in pixels]
    return [Image.fromarray(picture) for picture in pixels]


def file_questions(file: Path, emu: Emu) -> QuestionSet:
    """Questions of a file of lines {"messages": [..., user's, assistant's]}; the assistant's text is the right answer.

    Lines that are broken, or say what an earlier line said, are left out and stand in `problems`.

    Args:
        file: names of pictures in it start from its folder.
        emu: whose tokenizer says at which sizes pictures are read.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no line of it can be used.
    """
    reader, problems, seen = DocumentReader(emu.tokenizer, file.parent), list[LineProblem](), dict[str, int]()
    documents, answers = list[list[Any]](), list[str]()
    for line in read_lines(file):
        try:
            asked, answer = _question_of(line, seen, reader)
        except Exception as error:
            # Of any kind: a line may name any file.
            place = Place(file.name, line.number)
            problems.append(LineProblem(place, reason_of(error), message_of(error)))
            continue
        documents.append(asked)
        answers.append(answer)
    if not documents:
        told = f"; {problems[0].place}: {problems[0].message}" if problems else ""
        raise ValueError(f"{file} holds no question that can be asked{told}")
    return QuestionSet(file.stem, documents, answers, ["all"] * len(documents), problems=problems)


def _question_of(line: Line, seen: dict[str, int], reader: DocumentReader) -> tuple[list[Any], str]:
    """What a line asks, and its answer.

    Args:
        line: of the file.
        seen: numbers of the lines so far by what they said; this one is added.
        reader: of the items.
    """
    table = line.table()
    if set(table) != {"messages"}:
        raise BadLine("wrong value", f'expected {{"messages": [...]}}; got {shown(table)}')
    turns = check_messages(table["messages"])
    said = json.dumps(table, sort_keys=True)
    if said in seen:
        raise BadLine("duplicate", f"the same as line {seen[said]}")
    seen[said] = line.number
    if [role for role, _ in turns if role != "system"] != ["user", "assistant"]:
        raise BadLine(
            "wrong value", "a question is one message of the user and one of the assistant; split the conversation"
        )
    items = [item for _, content in turns[:-1] for item in content]
    answer = turns[-1][1]
    if len(answer) != 1 or not isinstance(answer[0], str):
        raise BadLine("wrong value", f"the answer is {shown(answer)}; expected text, which is compared exactly")
    values = reader.values(items)
    return [value.text if isinstance(value, Text) else value for value in values], answer[0].strip()


def ask(emu: Emu, questions: QuestionSet, batch_size: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Ask a model, greedily, in the template that it was trained with.

    Returns:
        (n,) bool which answers equal the right ones, spaces at their ends aside; and what the model said.

    Raises:
        ValueError: the model was not trained to answer.
    """
    longest = max(len(emu.tokenizer.layout.encode_text(answer)) for answer in questions.answers)
    together = batch_size or (AT_A_TIME if emu.model.device.type == "cpu" else ON_GPU)
    said = emu.generate_text(questions.documents, max_new_tokens=longest + SPARE_TOKENS, batch_size=together)
    right = [one.strip() == answer for one, answer in zip(said, questions.answers, strict=True)]
    return np.array(right), said
