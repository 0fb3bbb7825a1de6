"""The suite "likelihood": bits a token and bits a pixel of held-out documents, by task and by modality."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.evaluation.likelihood import Likelihoods, likelihoods
from emu.evaluation.measures import MIN_ITEMS, Measure, figures_of
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.training_examples import (
    HELD_OUT,
    TrainingExamples,
    add_example_options,
    find_examples,
)
from emu.pipeline import Emu


@dataclass(frozen=True)
class LikelihoodSubject:
    """A model and the documents that it is measured on.

    Attributes:
        emu: the model.
        examples: where the documents come from.
        documents: of each task.
    """

    emu: Emu
    examples: TrainingExamples
    documents: int


class LikelihoodSuite:
    """Held-out documents in every direction that their data has: words after pictures, pictures after words, clips."""

    summary = "bits a token and a pixel of held-out documents, by task and by modality"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        what = "held-out documents of each task (default: %(default)s)"
        parser.add_argument("--documents", type=int, default=200, help=what)
        add_example_options(parser)

    def prepare(self, request: argparse.Namespace) -> LikelihoodSubject:
        """Read the model and find its data; raises as `find_examples` does, and ValueError for too few documents."""
        if request.documents < MIN_ITEMS:
            raise ValueError(f"{request.documents} documents are too few for an interval; {MIN_ITEMS} are needed")
        emu = Emu.from_pretrained(request.model)
        return LikelihoodSubject(emu, find_examples(request, emu.tokenizer, [HELD_OUT]), request.documents)

    def run(self, subject: LikelihoodSubject, log: Log) -> Report:
        """See `Suite`."""
        emu, found = subject.emu, dict[str, Likelihoods]()
        for task in subject.examples.tasks:
            documents = subject.examples.documents(task, HELD_OUT, subject.documents)
            if len(documents) < MIN_ITEMS:
                log(f"{task}: left out, it has {len(documents)} held-out documents, and {MIN_ITEMS} are needed")
                continue
            found[task] = likelihoods(emu.model, emu.tokenizer, documents)
            log(f"{task}: {found[task].per_token()} bits a token, {len(documents)} documents")
        measures = {
            f"{what}/{name}": measure
            for name, some in [*found.items(), *by_modality(found).items()]
            for what, measure in measured(some).items()
        }
        table = {name: measure.to_dict() for name, measure in measures.items()}
        return Report(table, figures_of(measures), measures=measures)


def measured(some: Likelihoods) -> dict[str, Measure]:
    """The figures of documents by what they are counted in."""
    pixels = some.per_pixel()
    return {"bits a token": some.per_token(), **({} if pixels is None else {"bits a pixel": pixels})}


def by_modality(found: Mapping[str, Likelihoods]) -> dict[str, Likelihoods]:
    """All documents that ask for a modality together, by "all <modality>"."""
    modalities = dict.fromkeys(some.modality for some in found.values())
    return {
        f"all {modality}": joined([one for one in found.values() if one.modality == modality])
        for modality in modalities
    }


def joined(parts: list[Likelihoods]) -> Likelihoods:
    """Documents of several tasks as those of one."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in parts]) for name in ("bits", "tokens", "pixels")
    }
    return Likelihoods(parts[0].modality, **arrays, items=[one.items for one in parts])
