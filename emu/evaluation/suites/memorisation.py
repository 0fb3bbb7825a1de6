"""The suite "memorisation": nearest training examples of samples, and samples that repeat, beside real held-out examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu.documents import CodeSegment, TextSegment, TokenDocument
from emu.evaluation.figures import Figure
from emu.evaluation.measures import MIN_ITEMS, Measure, figures_of, mean_measure, share_measure
from emu.evaluation.memorisation import NEAR, Nearest, PictureSet, near_threshold, nearest, repeats
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.evaluation.suites.training_examples import (
    HELD_OUT,
    PARTS,
    TRAINED,
    TrainingExamples,
    add_example_options,
    find_examples,
)
from emu.media import png_bytes
from emu.pipeline import Emu

REAL, OF = "real", {HELD_OUT: "held-out prompts", TRAINED: "trained prompts"}
"""What figures call real held-out examples, and samples by their prompts."""
SHOWN, ZOOMED = 12, 64
"""Samples in the picture, and the least pixels along one."""


@dataclass(frozen=True)
class MemorySubject:
    """A model, its data, and the tasks whose samples are compared.

    Attributes:
        emu: the model.
        examples: its data.
        tasks: that write pictures after words alone.
        samples: of each task and kind of prompts.
        guidance_scale: of the samples, None for the model's own.
    """

    emu: Emu
    examples: TrainingExamples
    tasks: Sequence[str]
    samples: int
    guidance_scale: float | None = None


class MemorisationSuite:
    """Pictures drawn for held-out and for trained prompts, each compared with every training example."""

    summary = "nearest training examples of samples in codes and pixels, repeats; beside real held-out examples"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        what = "of each task and kind of prompts (default: %(default)s, or as many as there are held-out examples)"
        parser.add_argument("--samples", type=int, default=200, help=what)
        what = "of the samples (default: the model's own)"
        parser.add_argument("--guidance-scale", type=float, help=what)
        add_example_options(parser)

    def prepare(self, request: argparse.Namespace) -> MemorySubject:
        """Read the model and find its data.

        Raises:
            Unsuited: the model was not trained to draw, nothing is known of its data, or nothing in it is a picture after words.
            FileNotFoundError, ValueError: see `find_examples`; or too few samples.
        """
        if request.samples < MIN_ITEMS:
            raise ValueError(f"{request.samples} samples are too few for an interval; {MIN_ITEMS} are needed")
        emu = Emu.from_pretrained(request.model)
        if emu.tokenizer.vision is None:
            raise Unsuited("the model has no vision tokenizer; samples of pictures are compared")
        check_draws(emu)
        examples = find_examples(request, emu.tokenizer, PARTS)
        tasks = [task for task in examples.tasks if draws_pictures(emu, examples.documents(task, HELD_OUT, 1))]
        if not tasks:
            raise Unsuited(f"the examples hold no pictures after words, only {', '.join(examples.tasks)}")
        return MemorySubject(emu, examples, tasks, request.samples, request.guidance_scale)

    def run(self, subject: MemorySubject, log: Log) -> Report:
        """See `Suite`."""
        measures: dict[str, Measure] = {}
        gallery: list[Figure] = []
        for task in subject.tasks:
            held_out = subject.examples.documents(task, HELD_OUT, subject.samples)
            trained = subject.examples.documents(task, TRAINED)
            if len(held_out) < MIN_ITEMS or not trained:
                have = f"{len(held_out)} held-out and {len(trained)} training examples"
                log(f"{task}: left out, it has {have}, and {MIN_ITEMS} and 1 are needed")
                continue
            found, figure = measure_task(subject, task, held_out, trained)
            measures |= found
            gallery.append(figure)
            for name, measure in found.items():
                log(f"{name}: {measure}")
        table = {name: measure.to_dict() for name, measure in measures.items()}
        return Report(table, figures_of(measures), measures=measures, gallery=gallery)


def check_draws(emu: Emu) -> None:
    """Raise Unsuited where a model was not trained to draw after words."""
    try:
        emu.trained.check_task("text_to_image")
    except ValueError as reason:
        raise Unsuited(str(reason)) from reason


def draws_pictures(emu: Emu, documents: Sequence[TokenDocument]) -> bool:
    """Whether a document is words and then a whole picture."""
    if not documents:
        return False
    *given, last = emu.tokenizer.layout.parse(documents[0].ids)
    words = all(isinstance(segment, TextSegment) for segment in given)
    return words and isinstance(last, CodeSegment) and last.modality == "image" and last.hidden is None


def measure_task(
    subject: MemorySubject, task: str, held_out: Sequence[TokenDocument], trained: Sequence[TokenDocument]
) -> tuple[dict[str, Measure], Figure]:
    """Figures of one task, and its samples beside the training examples that they are nearest to."""
    emu, vision = subject.emu, subject.emu.tokenizer.vision
    assert vision is not None
    known = PictureSet.of(vision, codes_of(emu, trained))
    sets = {REAL: PictureSet.of(vision, codes_of(emu, held_out))}
    prompted = {HELD_OUT: held_out, TRAINED: [trained[i * len(trained) // len(held_out)] for i in range(len(held_out))]}
    for part, documents in prompted.items():
        sets[OF[part]] = PictureSet.of(vision, drawn(subject, documents))
    found = {name: nearest(pictures, known) for name, pictures in sets.items()}
    near = near_threshold(found[REAL])
    measured = {
        name: figures(one, repeats(sets[name].codes), near, (task, name, len(held_out), len(trained)))
        for name, one in found.items()
    }
    # Samples stand beside what is said of real examples, figure by figure.
    measures = {f"{what}/{task}/{name}": some[what] for what in measured[REAL] for name, some in measured.items()}
    return measures, picture(task, sets[OF[HELD_OUT]], found[OF[HELD_OUT]], known)


def figures(found: Nearest, repeated: np.ndarray, near: float, items: object) -> dict[str, Measure]:
    """What is said of pictures: copies, those near to a training example, repeats, and mean distances."""
    return {
        "copies": share_measure(found.differing == 0, items),
        "near": share_measure(found.levels <= near, items),
        "repeats": share_measure(repeated, items),
        "codes that differ": mean_measure(found.differing, items),
        "levels apart": mean_measure(found.levels, items),
    }


def codes_of(emu: Emu, documents: Sequence[TokenDocument]) -> torch.Tensor:
    """(n, *grid) codes of the pictures that documents end in.

    Raises:
        ValueError: they are not of one grid.
    """
    grids: list[Any] = [emu.tokenizer.layout.parse(document.ids)[-1] for document in documents]
    if len(sizes := {tuple(segment.codes.shape) for segment in grids}) != 1:
        raise ValueError(
            f"pictures of {len(sizes)} grids of codes, {sorted(sizes)[:4]}; expected pictures of one size: name shards of one size"
        )
    return torch.stack([segment.codes for segment in grids])


def drawn(subject: MemorySubject, documents: Sequence[TokenDocument]) -> torch.Tensor:
    """(n, *grid) codes that the model draws for the words of documents, each with a seed of its own."""
    emu, layout = subject.emu, subject.emu.tokenizer.layout
    prompts = []
    for document in documents:
        words = [segment.ids for segment in layout.parse(document.ids)[:-1] if isinstance(segment, TextSegment)]
        prompts.append("".join(layout.decode_text(ids.tolist()) for ids in words))
    height, width = codes_of(emu, documents[:1]).shape[1:3]
    assert emu.tokenizer.vision is not None
    factor = emu.tokenizer.vision.spatial_factor
    results = emu.generate_images(
        prompts,
        size=(height * factor, width * factor),
        guidance_scale=subject.guidance_scale,
        seed=list(range(len(prompts))),
        batch_size=64,
    )
    return torch.stack([result.codes for result in results])


def picture(task: str, samples: PictureSet, found: Nearest, known: PictureSet) -> Figure:
    """The samples that look most like a training example, above the examples that are nearest in codes and in pixels."""
    rows = np.argsort(found.levels, kind="stable")[:SHOWN]
    lines = [samples.pixels[rows], known.pixels[found.by_codes[rows]], known.pixels[found.by_pixels[rows]]]
    sheet = np.concatenate([np.concatenate(list(line), axis=1) for line in lines], axis=0)
    zoom = max(1, ZOOMED // samples.pixels.shape[1])
    note = (
        f"Of {len(samples)} samples those that look most like a training example; under each the example with most codes in "
        f"common, and the one that looks most alike. Near is what is within the distance that {NEAR:.0%} of real held-out "
        "examples are within."
    )
    image = Image.fromarray(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1))
    return Figure(f"Nearest training examples, {task}", note, png_bytes(image))
