"""The suite "guidance": accuracy against variety of pictures at each guidance scale."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.documents import TokenDocument
from emu.evaluation.measures import MIN_ITEMS, Measure, figures_of, share_measure
from emu.evaluation.models import ModelSample
from emu.evaluation.plots import variety_picture
from emu.evaluation.skills import allowed
from emu.evaluation.statistics import Interval
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.evaluation.suites.memorisation import check_draws, codes_of, draws_pictures
from emu.evaluation.suites.training_examples import (
    HELD_OUT,
    Grading,
    TrainingExamples,
    WorldExamples,
    add_example_options,
    find_examples,
)
from emu.evaluation.variety import (
    Prompts,
    VarietyPoint,
    attribute_entropies,
    bits_of,
    draw,
    exact_points,
    sampled_point,
)
from emu.generation import Engine, Sampling
from emu.pipeline import Emu
from emu.worlds.scene_codes import decode
from emu.worlds.scene_documents import WorldDocuments

PAIRS, PAIR_SAMPLES = 4, 400
"""Captions of two objects, and pictures of each: enough to tell 120 pairs of places apart."""
STUDENT = 3.182
"""The quantile of Student's distribution with `PAIRS` - 1 degrees of freedom that leaves 5 % outside of an interval."""
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
RULE = "plain"
"""Kind of captions whose possible pictures are listed."""


@dataclass(frozen=True)
class GuidanceSubject:
    """A model and how its pictures are graded.

    Attributes:
        emu: the model.
        examples: its data, which grades pictures, or worlds.
        scales: of the guidance.
        samples: pictures at each scale, where they are drawn.
        seed: of the pictures.
    """

    emu: Emu
    examples: TrainingExamples
    scales: Sequence[float]
    samples: int
    seed: int


class GuidanceSuite:
    """How much variety each guidance scale pays for accuracy: bits that prompts leave free, and the share of right pictures."""

    summary = "accuracy against variety of pictures at each guidance scale"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        add = parser.add_argument
        listed = ",".join(f"{scale:g}" for scale in SCALES)
        add("--scales", default=listed, help="guidance scales (default: %(default)s)")
        add("--samples", type=int, default=200, help="pictures at each scale (default: %(default)s)")
        add("--seed", type=int, default=0, help="of the pictures (default: %(default)s)")
        add_example_options(parser)

    def prepare(self, request: argparse.Namespace) -> GuidanceSubject:
        """Read the model and find who grades its pictures.

        Raises:
            Unsuited: the model was not trained to draw, or nobody knows which of its pictures are right.
            FileNotFoundError, ValueError: scales that are no numbers, too few samples, or see `find_examples`.
        """
        if request.samples < MIN_ITEMS:
            raise ValueError(f"{request.samples} samples are too few for an interval; {MIN_ITEMS} are needed")
        scales = read_scales(request.scales)
        emu = Emu.from_pretrained(request.model)
        check_draws(emu)
        examples = find_examples(request, emu.tokenizer, [HELD_OUT])
        known = (
            "one/text-to-image" in examples.tasks
            if isinstance(examples, WorldExamples)
            else isinstance(examples, Grading)
        )
        if not known:
            raise Unsuited(
                "nobody knows which of its pictures are right: its examples have no grader, and it draws no world of one object"
            )
        return GuidanceSubject(emu, examples, scales, request.samples, request.seed)

    def run(self, subject: GuidanceSubject, log: Log) -> Report:
        """See `Suite`."""
        points = []
        for point in points_of(subject):
            points.append(point)
            log(f"guidance {point.guidance_scale:g}: right {point.right}, {point.bits} bits left free")
        measures = {name: measure for point in points for name, measure in named(point).items()}
        if isinstance(subject.examples, WorldExamples) and "two/text-to-image" in subject.examples.tasks:
            for name, measure in pair_measures(subject, subject.examples.worlds["two"]).items():
                measures[name] = measure
                log(f"{name}: {measure}")
        held_out = None if points[0].truth is not None else held_out_bits(subject)
        table: dict[str, Any] = {name: measure.to_dict() for name, measure in measures.items()}
        table |= {"truth": points[0].truth, "held_out_bits": held_out}
        picture, note = variety_picture(points, held_out), note_of(points, held_out)
        return Report(table, figures_of(measures), picture, measures=measures, note=note)


def read_scales(words: str) -> list[float]:
    """Guidance scales of a list such as "1,1.5,3".

    Raises:
        ValueError: what is not a number of 0 or more, or one that comes twice.
    """
    try:
        scales = [float(word) for word in words.split(",")]
    except ValueError as error:
        raise ValueError(f"--scales is {words!r}; expected numbers such as 1,1.5,3") from error
    if len(set(scales)) < len(scales) or not all(0 <= scale < float("inf") for scale in scales):
        raise ValueError(f"--scales is {words!r}; expected different numbers of 0 or more")
    return scales


def points_of(subject: GuidanceSubject) -> Iterator[VarietyPoint]:
    """A point for each scale."""
    emu, engine = subject.emu, Engine(subject.emu.model.eval(), subject.emu.tokenizer.layout)
    if isinstance(subject.examples, WorldExamples):
        documents = subject.examples.worlds["one"]
        captions = np.unique(documents.world.draw(subject.seed, 2000, HELD_OUT, rules=[RULE]).values("caption"))
        yield from exact_points(engine, documents, captions, [Sampling(scale) for scale in subject.scales])
        return
    pictures, defaults = held_out_pictures(subject), emu.defaults
    # Prompts come again where there are fewer than samples.
    prompts = Prompts.of(emu.tokenizer.layout, [pictures[i % len(pictures)] for i in range(subject.samples)])
    for scale in subject.scales:
        sampling = Sampling(scale, defaults.temperature, defaults.top_k, defaults.top_p)
        codes, bits = draw(engine, prompts, sampling, subject.seed)
        assert emu.tokenizer.vision is not None and isinstance(subject.examples, Grading)
        right = subject.examples.grade(prompts.captions, decode(emu.tokenizer.vision, codes))
        yield sampled_point(right, bits, scale, (prompts.captions, subject.seed, scale))


def pair_measures(subject: GuidanceSubject, documents: WorldDocuments, each: int = PAIR_SAMPLES) -> dict[str, Measure]:
    """Of two objects, which are too many to list: share of right pictures, and the entropy of the places among them beside the truth."""
    world, engine = documents.world, Engine(subject.emu.model.eval(), subject.emu.tokenizer.layout)
    captions = np.unique(world.draw(subject.seed, 200, HELD_OUT, rules=[RULE]).values("caption"))[:PAIRS]
    asked, found = np.repeat(captions, each), dict[str, Measure]()
    odds = world.attribute_odds("text-to-image", "places", captions)
    truth = float(-(odds * np.log2(np.where(odds > 0, odds, 1.0))).sum(1).mean())
    for scale in subject.scales:
        answers = ModelSample(engine, documents, scale)("text-to-image", asked, subject.seed)
        right = allowed(world, answers, asked)
        places = np.where(right, world.attribute_values("text-to-image", "places", answers, asked), -1)
        items = (world.fingerprint(), asked.tolist(), subject.seed, scale)
        found[f"right, two objects/guidance {scale:g}"] = share_measure(right, items)
        entropies = attribute_entropies(places, asked)
        found[f"free places, share of the truth, two objects/guidance {scale:g}"] = over_captions(entropies / truth)
    return found


def over_captions(shares: np.ndarray) -> Measure:
    """The mean over the few captions (`PAIRS`,), with Student's interval."""
    value, half = float(shares.mean()), STUDENT * float(shares.std(ddof=1)) / math.sqrt(len(shares))
    return Measure(Interval(value, value - half, value + half, len(shares)))


def held_out_pictures(subject: GuidanceSubject) -> list[TokenDocument]:
    """Real pictures after words, at most as many as there are samples."""
    emu, examples = subject.emu, subject.examples
    task = next(task for task in examples.tasks if draws_pictures(emu, examples.documents(task, HELD_OUT, 1)))
    return examples.documents(task, HELD_OUT, subject.samples)


def held_out_bits(subject: GuidanceSubject) -> float:
    """Mean bits that the model spends on the real pictures of the prompts: no less than prompts leave free in truth."""
    pictures, emu = held_out_pictures(subject), subject.emu
    prompts = Prompts.of(emu.tokenizer.layout, pictures)
    engine = Engine(emu.model.eval(), emu.tokenizer.layout)
    bits = bits_of(engine, prompts.ids, codes_of(emu, pictures), prompts.grid, Sampling(1.0))
    return float(bits.mean())


def named(point: VarietyPoint) -> Mapping[str, Measure]:
    """The figures of a point."""
    scale = f"guidance {point.guidance_scale:g}"
    return {f"right/{scale}": point.right, f"free bits/{scale}": point.bits}


def note_of(points: Sequence[VarietyPoint], held_out: float | None) -> str:
    """What the picture of the points shows."""
    told = "A point for each guidance scale: the share of right pictures, and the bits of a picture that its prompt leaves free."
    if points[0].truth is not None:
        return f"{told} Computed over all possible pictures; the dashed line is the truth, {points[0].truth:.2f} bits."
    real = f"Real held-out pictures cost the model {held_out:.1f} bits (dashed, where that is near), no less than the truth."
    return f"{told} {real}"
