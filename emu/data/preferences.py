"""Ranked answers to prompts and pairs of them, as files and as training documents; the form is in docs/formats.md.

Both files begin with a line that says what they are and of which vocabulary; every other line is one record. Answers are the ids that were
drawn, never what a tokenizer makes of the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.data.document_sources import DocumentSource, ListSource
from emu.data.model_data import ModelData
from emu.documents import TokenDocument
from emu.lines import BadLine, Line, read_lines, shown
from emu.stopping import say
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import write_file

RANKED, PAIRS = "emu ranked answers 1", "emu preference pairs 1"
MAX_BAD = 0.02
"""Share of broken lines above which a file is refused."""


@dataclass(frozen=True)
class RankedAnswer:
    """What was drawn after a prompt.

    Attributes:
        ids: (n,) int64 what follows the header of the block, its closing marks included.
        score: its reward.
        seed: of its noise.
    """

    ids: tuple[int, ...]
    score: float
    seed: int

    def table(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"ids": list(self.ids), "score": self.score, "seed": self.seed}


@dataclass(frozen=True)
class RankedAnswers:
    """The answers to one prompt.

    Attributes:
        prompt: in words.
        prompt_ids: (m,) int64, ending in the header of the block.
        answers: the best first, the earlier seed first where scores are equal.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    answers: tuple[RankedAnswer, ...]

    def pair(self, margin: float = 0.0) -> tuple[RankedAnswer, RankedAnswer] | None:
        """The best answer and the worst; None where their scores are not more than `margin` apart."""
        best, worst = self.answers[0], self.answers[-1]
        return (best, worst) if best.score - worst.score > margin and best.ids != worst.ids else None


def write_ranked(
    folder: Path, ranked: Sequence[RankedAnswers], vocabulary: Vocabulary, about: Mapping[str, Any], margin: float = 0.0
) -> int:
    """Write `ranked.jsonl` and `pairs.jsonl` into a folder; returns the number of pairs.

    Args:
        about: what else their first lines say, of JSON's types.
        margin: see `RankedAnswers.pair`.
    """
    answers = (
        {"prompt": some.prompt, "prompt_ids": list(some.prompt_ids), "answers": [one.table() for one in some.answers]}
        for some in ranked
    )
    found = [(some, pair) for some in ranked if (pair := some.pair(margin)) is not None]
    pairs = (
        {
            "prompt": some.prompt,
            "prompt_ids": list(some.prompt_ids),
            "chosen": pair[0].table(),
            "rejected": pair[1].table(),
        }
        for some, pair in found
    )
    for name, form, records in (("ranked.jsonl", RANKED, answers), ("pairs.jsonl", PAIRS, pairs)):
        head = {"format": form, "vocabulary": vocabulary.fingerprint, **about}
        write_file(folder / name, b"".join(json.dumps(one).encode() + b"\n" for one in (head, *records)))
    return len(found)


class _Preferences(ModelData):
    """Records of one of the two files as documents.

    Attributes:
        form: what the first line of the file says.
    """

    form = ""

    def __init__(
        self, model: str, file: str, name: str, documents_per_step: int, row_length: int, **options: Any
    ) -> None:
        super().__init__(model, {name: documents_per_step}, row_length, **options)
        self.file, self.source = file, name

    def documents_of(self, record: Mapping[str, Any]) -> list[TokenDocument]:
        """The documents of a record.

        Raises:
            BadLine: something in it is wrong.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its records are")

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """The records of the file, each once.

        Raises:
            ValueError: it is of another kind or vocabulary, or too many of its lines are broken.
        """
        documents: list[TokenDocument] = []
        found = _Found()
        for record in self._records(found):
            documents += record
        if found.bad or found.twice:
            first = f", the first: {found.first}" if found.first else ""
            say(
                f"{self.file}: {found.good} records, {found.bad} broken lines left out, {found.twice} duplicates{first}"
            )
        if not found.good + found.bad:
            raise ValueError(
                f"{self.file} holds no records; give emu rank prompts whose answers differ in their scores, or more --candidates of each"
            )
        if found.bad > MAX_BAD * max(1, found.good + found.bad) or not documents:
            raise ValueError(
                f"{self.file} has {found.bad} broken lines of {found.good + found.bad}"
                + (f", the first: {found.first}" if found.first else "")
                + f"; at most {MAX_BAD:.0%} are left out, and something must be left: write it with emu rank"
            )
        return {self.source: ListSource(documents)}

    def _records(self, found: _Found) -> Iterator[list[TokenDocument]]:
        lines, seen = iter(read_lines(self.file)), set[bytes]()
        self._check_head(next(lines, None))
        for line in lines:
            if line.content.strip() in seen:
                found.twice += 1
                continue
            seen.add(line.content.strip())
            try:
                documents = self.documents_of(line.table())
            except BadLine as error:
                found.bad += 1
                found.first = found.first or f"line {line.number}: {error}"
                continue
            found.good += 1
            yield documents

    def _check_head(self, line: Line | None) -> None:
        try:
            head = {} if line is None else line.table()
        except BadLine:
            head = {}
        if head.get("format") != self.form:
            raise ValueError(
                f"{self.file} begins with {shown(head.get('format'))}; expected {self.form!r} in its first line, as emu rank writes it"
            )
        if head.get("vocabulary") != self.vocabulary.fingerprint:
            raise ValueError(
                f"{self.file} is of the vocabulary {shown(head.get('vocabulary'))}, the model {self.model} of "
                f"{self.vocabulary.fingerprint}; rank answers of this model, or name the one that drew them"
            )

    def answer(self, record: Mapping[str, Any], found: Any) -> TokenDocument:
        """A prompt with one answer; the answer's codes, words and EOS weigh 1.

        Raises:
            BadLine: ids are missing or none of the vocabulary.
        """
        prompt = _ids(record.get("prompt_ids"), "prompt_ids", self.vocabulary)
        ids = _ids(found.get("ids") if isinstance(found, dict) else None, "ids", self.vocabulary)
        controls = [index for name, index in self.vocabulary.controls.items() if name != "eos"]
        if int(prompt[0]) != self.vocabulary.control("bos") or int((ids == prompt[0]).sum()):
            raise BadLine("wrong value", "prompt_ids does not begin with BOS, or an answer holds one")
        weights = torch.cat([torch.zeros(len(prompt)), (~torch.isin(ids, torch.tensor(controls))).float()])
        return TokenDocument(torch.cat([prompt, ids]), weights)


@dataclass
class _Found:
    """How many lines of a file were good, broken or repeated, and what is wrong with the first broken one."""

    good: int = 0
    bad: int = 0
    twice: int = 0
    first: str = ""


class PreferenceData(_Preferences):
    """Pairs of answers for DPO; a document is the better answer with its prompt, and then the other one with it.

    Args:
        model: folder of the model that training starts from.
        pairs: the file, as `emu rank` writes it.
        documents_per_step: pairs of a batch.
        row_length: positions of a row; at least the longest pair, both sequences together.
        options: see `MixtureDataModule`.
    """

    form = PAIRS

    def __init__(
        self, model: str, pairs: str, documents_per_step: int = 8, row_length: int = 256, **options: Any
    ) -> None:
        super().__init__(model, pairs, "pairs", documents_per_step, row_length, **options)

    def documents_of(self, record: Mapping[str, Any]) -> list[TokenDocument]:
        """One pair."""
        better, other = (self.answer(record, record.get(name)) for name in ("chosen", "rejected"))
        return [TokenDocument(torch.cat([better.ids, other.ids]), torch.cat([better.weights, other.weights]))]


class RankedData(_Preferences):
    """The best answers to each prompt, for quality fine-tuning: next-token prediction on what was drawn alone (Emu3, section 2.4.1).

    Args:
        model: folder of the model that training starts from.
        ranked: the file, as `emu rank` writes it.
        share: of the answers to each prompt that are kept, the best; at least one.
        least_score: answers below it are left out.
        documents_per_step, row_length, options: see `MixtureDataModule`.
    """

    form = RANKED

    def __init__(
        self,
        model: str,
        ranked: str,
        share: float = 0.25,
        least_score: float = -math.inf,
        documents_per_step: int = 8,
        row_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(model, ranked, "ranked", documents_per_step, row_length, **options)
        self.share, self.least_score = share, least_score

    def problems(self, trainer: Any) -> list[str]:
        """See `ModelData`."""
        wrong = not 0 < self.share <= 1
        return super().problems(trainer) + ([f"data.share is {self.share}; expected in (0, 1]"] if wrong else [])

    def documents_of(self, record: Mapping[str, Any]) -> list[TokenDocument]:
        """The answers that are kept."""
        answers = record.get("answers")
        if not isinstance(answers, list) or not answers:
            raise BadLine("wrong value", f'"answers" is {shown(answers)}; expected a list')
        kept = answers[: max(1, math.ceil(self.share * len(answers)))]
        scores = [one["score"] for one in kept if isinstance(one, dict) and isinstance(one.get("score"), int | float)]
        if len(scores) < len(kept):
            raise BadLine("wrong value", f"one of the answers {shown(kept)} has no score; expected a number")
        return [self.answer(record, one) for one, value in zip(kept, scores, strict=True) if value >= self.least_score]


def _ids(found: Any, name: str, vocabulary: Vocabulary) -> Tensor:
    """Ids of a vocabulary, (n,) int64.

    Raises:
        BadLine: they are not.
    """
    if not isinstance(found, list) or not found or not all(type(one) is int for one in found):
        raise BadLine("wrong value", f"{name} is {shown(found)}; expected a list of ids")
    if min(found) < 0 or max(found) >= vocabulary.size:
        raise BadLine("wrong value", f"{name} holds an id outside of 0..{vocabulary.size - 1}")
    return torch.tensor(found, dtype=torch.int64)
