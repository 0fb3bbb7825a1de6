"""Skills in rendered worlds: what a caption asks for, read off the generated pictures and clips exactly.

Each skill is a kind of caption and a question about the answer. "Right" means that the world allows the answer at all: everything the
caption says holds, and nothing is there that it does not speak of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from emu.evaluation.calibration import Sample
from emu.evaluation.measures import Measure, share_measure
from emu.evaluation.models import ModelSample
from emu.evaluation.statistics import Interval, mean
from emu.worlds import COMBINATIONS, HELD_OUT, MovingWorld, ShapesWorld, World
from emu.worlds.moving import is_path

Right = Callable[[World, np.ndarray, np.ndarray], np.ndarray]
"""(world, (n,) answers, (n,) captions) -> (n,) bool."""


@dataclass(frozen=True)
class Skill:
    """A question about generated pictures or clips.

    Attributes:
        name: what tables call it.
        world: "one", "two" or "moving".
        rules: kinds of captions to prompt with.
        right: which answers are right.
        split: where the captions come from.
    """

    name: str
    world: str
    rules: tuple[str, ...]
    right: Right
    split: str = HELD_OUT


def allowed(world: World, answers: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether the world, with its held-out combinations, gives such an answer to the caption."""
    task = "text-to-video" if isinstance(world, MovingWorld) else "text-to-image"
    return np.isfinite(world.log2_probability(task, answers, captions, full=True))


def right_count(world: World, answers: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether the picture shows as many objects as the world has."""
    return answers >= 0


def same_ball(world: World, answers: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether every frame shows one ball of the colour that the caption names."""
    assert isinstance(world, MovingWorld)
    colour = _named(world, captions, "colour")
    return (answers >= 0) & (world.paths_of(np.maximum(answers, 0))[0] == colour)


def right_direction(world: World, answers: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether the first move goes where the caption says, or bounces where it cannot."""
    assert isinstance(world, MovingWorld)
    colour, places = world.paths_of(np.maximum(answers, 0))
    begun = np.unique(world.variables["beginning"])
    beginning = (colour * 16 + places[:, 0]) * 16 + places[:, 1]
    asked = world.table("beginning", "caption", full=True)
    known = np.isin(beginning, begun) & (answers >= 0)
    odds = asked.log2_probability(np.where(known, beginning, begun[0]), captions)
    return known & np.isfinite(odds)


def legal_path(world: World, answers: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Whether a single ball moves to a neighbouring cell at every step, as turns and bounces allow."""
    assert isinstance(world, MovingWorld)
    return (
        (answers >= 0) & is_path(world.paths_of(np.maximum(answers, 0))[1]) & np.isin(answers, world.variables["clip"])
    )


def _named(world: World, captions: np.ndarray, column: str) -> np.ndarray:
    """The value of a column that each caption fixes."""
    values = np.full(len(world.captions), -1)
    for option in range(world.captions.ids.shape[1]):
        values[world.captions.ids[:, option]] = world.columns[column]
    return values[captions]


SHAPES_SKILLS = (
    Skill("single object", "one", ("plain", "reworded"), allowed),
    Skill("colours", "one", ("counted",), allowed),
    Skill("size", "one", ("sized",), allowed),
    Skill("position", "one", ("placed",), allowed),
    Skill("negation", "one", ("negated",), allowed),
    Skill("two objects: number", "two", ("plain",), right_count),
    Skill("two objects: binding", "two", ("plain",), allowed),
    Skill("relation", "two", ("relation",), allowed),
    Skill("counting", "two", ("counted",), allowed),
    Skill("negation, two objects", "two", ("negated",), allowed),
    Skill("held-out kinds: single object", "one", ("plain", "reworded"), allowed, COMBINATIONS),
    Skill("held-out pairs: binding", "two", ("plain",), allowed, COMBINATIONS),
)
VIDEO_SKILLS = (
    Skill("direction", "moving", ("full", "direction"), right_direction),
    Skill("identity", "moving", ("full", "colour"), same_ball),
    Skill("legal path", "moving", ("full", "direction", "colour"), legal_path),
    Skill("everything right", "moving", ("full", "direction", "colour"), allowed),
    Skill("held-out colour x direction", "moving", ("full",), allowed, COMBINATIONS),
)


def measure_skill(skill: Skill, world: World, sample: Sample, n: int, seed: int = 0) -> Measure:
    """Share of right answers to captions of a skill; models of equal seeds are asked the same and drawn with the same noise.

    Raises:
        ValueError: fewer than 30 samples, whose interval would say nothing.
    """
    if n < 30:
        raise ValueError(f"{n} samples for the skill {skill.name!r}; 30 are needed for an interval that says something")
    captions = world.draw(seed, n, skill.split, rules=skill.rules).values("caption")
    answers = sample("text-to-video" if isinstance(world, MovingWorld) else "text-to-image", captions, seed)
    return share_measure(skill.right(world, answers, captions), (skill.name, world.fingerprint(), n, seed))


def iou(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) of first and last bins y0, x0, y1, x1; 0 for boxes that end before they begin."""
    first, last = np.maximum(boxes[..., :2], other[..., :2]), np.minimum(boxes[..., 2:], other[..., 2:])
    both = np.prod(np.maximum(last - first + 1, 0), axis=-1)
    areas = [np.prod(np.maximum(some[..., 2:] - some[..., :2] + 1, 0), axis=-1) for some in (boxes, other)]
    return both / np.maximum(areas[0] + areas[1] - both, 1)


def detection_iou(world: ShapesWorld, sample: ModelSample, n: int, seed: int = 0) -> Interval:
    """Mean overlap of predicted and true boxes, object by object in canonical order."""
    draws = world.draw(seed, n, HELD_OUT)
    codes = sample.codes("image-to-boxes", draws.values("picture"), seed).numpy()  # (n, k, 4)
    return mean(iou(codes, world.boxes[draws.rows]).mean(axis=1))
