"""Questions about scenes as conversations to fine-tune on, in the template that generation asks with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emu.data.document_sources import DocumentSource, FunctionSource
from emu.data.model_data import ModelData
from emu.data.tokenizing.conversations import ROLES, templated, weighted
from emu.documents import Segment, TextSegment, TokenDocument
from emu.trained import TEXT, Trained, task_name
from emu.worlds import TRAIN, standard_worlds
from emu.worlds.questions import WorldQuestions
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import ENDLESS, GUIDED, WORLDS_FILE, WorldSource
from emu_tokenizers.files import read_json, write_json

QUESTIONS = "questions"
"""What stands for a task in the names of sources; and, in a model's `WORLDS_FILE`, the worlds that it answers questions about."""
EVERYTHING = "all"


class QuestionData(ModelData):
    """What, where, how many, which way, how often did it bounce: endless questions about scenes of training, and plain tasks beside them.

    Args:
        model: folder of a model that was trained on the worlds.
        documents_per_step: "world/questions" -> how many of its questions a step holds, worlds being "one", "two" and "moving"; and
            "world/task" -> documents as in pretraining, so that the model goes on doing what it could.
        loss_on: whose words are learned: "assistant", "user", "system" or "all".
        prompt_dropout: share of plain documents without their prompt, where the task is guided.
        size: pixels along a picture.
        row_length, options: see `MixtureDataModule`.
    """

    def __init__(
        self,
        model: str,
        documents_per_step: dict[str, int],
        row_length: int = 192,
        *,
        loss_on: str = "assistant",
        prompt_dropout: float = 0.1,
        size: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(model, documents_per_step, row_length, **options)
        self.loss_on, self.prompt_dropout, self.size = loss_on, prompt_dropout, size

    def problems(self, trainer: Any) -> list[str]:
        """See `ModelData`; so are names of worlds, tasks and roles."""
        found = super().problems(trainer) + self._name_problems()
        if self.loss_on not in (*ROLES, EVERYTHING):
            found.append(f"loss_on is {self.loss_on!r}; expected one of {', '.join((*ROLES, EVERYTHING))}")
        if not 0 <= self.prompt_dropout < 1:
            found.append(f"prompt_dropout is {self.prompt_dropout}; expected a share of 0 or more, below 1")
        return found

    def _name_problems(self) -> list[str]:
        found, worlds = list[str](), standard_worlds()
        for name in self.documents_per_step:
            world, _, task = name.partition("/")
            if world not in worlds or task not in (QUESTIONS, *worlds[world].tasks):
                found.append(
                    f"documents_per_step names {name!r}; expected a world of {', '.join(worlds)} and {QUESTIONS} or one of its tasks, "
                    "e.g. two/questions"
                )
        return found

    @cached_property
    def documents(self) -> dict[str, WorldDocuments]:
        """How scenes of each world are written; refuses tokenizers that do not keep them apart."""
        named, worlds = {name.partition("/")[0] for name in self.documents_per_step}, standard_worlds()
        found = {name: WorldDocuments(worlds[name], self.tokenizer, self.size) for name in worlds if name in named}
        for documents in found.values():
            documents.check_distinct()
        return found

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """Questions, and documents of plain tasks.

        Raises:
            ValueError: there is no such world or task.
        """
        if problems := self._name_problems():
            raise ValueError("; ".join(problems))
        found: dict[str, DocumentSource] = {}
        for name in self.documents_per_step:
            world, _, task = name.partition("/")
            documents = self.documents[world]
            if task == QUESTIONS:
                found[name] = question_source(documents, self.loss_on)
            else:
                found[name] = WorldSource(documents, task, self.prompt_dropout if task in GUIDED else 0.0)
        return found

    def write_carried(self, begun: Path, folder: Path) -> None:
        """See `ModelData`; with the worlds that the model now answers questions about."""
        super().write_carried(begun, folder)
        asked = [name.partition("/")[0] for name in self.documents_per_step if name.endswith(f"/{QUESTIONS}")]
        file = folder / WORLDS_FILE
        if file.is_file():
            table = read_json(file)
            write_json(file, table | {QUESTIONS: sorted({*table.get(QUESTIONS, []), *asked})})

    def trained(self, begun: Trained) -> Trained:
        """See `ModelData`; with answering questions."""
        asked = [name for name in self.documents_per_step if name.endswith(f"/{QUESTIONS}")]
        shown = {"video" if name.startswith("moving/") else "image" for name in asked}
        tasks = [task_name([kind, TEXT], TEXT) for kind in sorted(shown)]
        context = max(begun.context or 0, *self.longest_documents().values())
        return replace(begun, tasks=tuple(dict.fromkeys((*begun.tasks, *tasks))), context=context)


def question_source(documents: WorldDocuments, loss_on: str = "assistant") -> FunctionSource:
    """Questions about scenes of a world, one for each key.

    Args:
        documents: of the world.
        loss_on: whose words are learned.
    """
    questions = WorldQuestions(documents.world)

    def document(index: int, key: int) -> TokenDocument:
        asked = questions.draw(key, 1, TRAIN)
        (shown,) = documents.segments(*asked.shown)
        turns: list[tuple[str, list[Segment]]] = [
            ("user", [shown, _words(documents, asked.texts[0])]),
            ("assistant", [_words(documents, asked.answers[0])]),
        ]
        learned = [(role, [weighted(segment, role, loss_on) for segment in segments]) for role, segments in turns]
        return templated(learned, documents.tokenizer, loss_on)

    return FunctionSource(document, ENDLESS, _longest(documents, questions))


def _words(documents: WorldDocuments, text: str) -> TextSegment:
    return TextSegment(torch.tensor(documents.tokenizer.layout.encode_text(text), dtype=torch.int64))


def _longest(documents: WorldDocuments, questions: WorldQuestions) -> int:
    """Upper bound on the tokens of a question with its answer."""
    encode = documents.tokenizer.layout.encode_text
    texts = {words.format(*about) for kind in questions.kinds for words in kind.wordings for about in kind.about}
    answers = {answer for kind in questions.kinds for answer in kind.answers}
    (shown,) = documents.segments(*questions.draw(0, 1).shown)
    block = len(documents.tokenizer.layout.build([shown]).ids)  # with BOS and EOS
    return block + max(map(len, map(encode, texts))) + max(map(len, map(encode, answers)))
