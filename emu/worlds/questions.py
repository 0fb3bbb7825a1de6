"""Questions about scenes, with exact answers: what, where, how many, which way, how often did it bounce.

A question is a kind ("colour"), what it is about ("the circle"), and the words it is put in. The answer is read off the table of scenes, so
that it is right by construction. Answers are balanced: once it is known what is asked, every answer is as likely, and whoever does not look
at the picture is right once in so many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np

from emu.randomness import key_of, uniforms
from emu.worlds.moving import DIRECTIONS, MovingWorld, visible_turns
from emu.worlds.shapes import QUADRANTS, ShapesWorld
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES, SIZES
from emu.worlds.world import TRAIN, World

HALVES = ("left half", "right half", "top half", "bottom half")
NUMBERS = ("none", "one", "two")
TIMES = ("never", "once", "twice", "three times", "four times", "five times", "six times")

SIDES = (
    "Is {0} left or right of {1}?",
    "On which side of {1} is {0}, left or right?",
    "Does one find {0} left or right of {1}?",
)
HEIGHTS = ("Is {0} above or below {1}?", "Where is {0}, above or below {1}?", "Does one find {0} above or below {1}?")


@dataclass(frozen=True)
class QuestionKind:
    """A kind of question about the scenes of a world.

    Attributes:
        name: what tables call it.
        wordings: ways to ask, with a field for each word of what is asked about.
        about: what can be asked about: the words of each.
        answers: the possible answers, in words.
        table: (N, len(about)) int64 number of the answer for each scene, -1 where the scene does not answer it.
    """

    name: str
    wordings: tuple[str, ...]
    about: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]
    table: np.ndarray


@dataclass(frozen=True)
class Asked:
    """Questions about scenes.

    Attributes:
        world: of the scenes.
        rows: (n,) int64 the scenes.
        kinds: (n,) int64 numbers of the kinds, in the order of `WorldQuestions.kinds`.
        texts: the questions.
        answers: the right answers.
        choices: for each question, how many answers are possible: the guess without a picture is right one time in so many.
        split: the split that the scenes come from.
    """

    world: World
    rows: np.ndarray
    kinds: np.ndarray
    texts: list[str]
    answers: list[str]
    choices: np.ndarray
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shown(self) -> tuple[str, np.ndarray]:
        """(variable that documents show, "picture" or "clip"; its (n,) int64 numbers)."""
        variable = "clip" if isinstance(self.world, MovingWorld) else "picture"
        return variable, self.world.variables[variable][self.rows]

    def lines(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Conversations as lines of training data.

        Args:
            items: how a line names the picture or the clip of each question, e.g. {"image": "7.png"}.

        Raises:
            ValueError: there are more or fewer items than questions.
        """
        if len(items) != len(self):
            raise ValueError(f"{len(items)} items for {len(self)} questions; give one for each")
        return [
            {
                "messages": [
                    {"role": "user", "content": [dict(item), text]},
                    {"role": "assistant", "content": answer},
                ]
            }
            for item, text, answer in zip(items, self.texts, self.answers, strict=True)
        ]


class WorldQuestions:
    """The questions that a world answers.

    Args:
        world: of one or two objects, or of a rolling ball.

    Attributes:
        kinds: of questions.

    Raises:
        ValueError: no questions are known for the world.
    """

    def __init__(self, world: World) -> None:
        if isinstance(world, ShapesWorld):
            self.kinds = _one_object(world) if world.num_objects == 1 else _two_objects(world)
        elif isinstance(world, MovingWorld):
            self.kinds = _rolling(world)
        else:
            raise ValueError(
                f"no questions are known about the world {world.name!r}; use shapes(1), shapes(2) or moving()"
            )
        self.world = world
        self._groups: dict[tuple[int, str], _Group] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the kinds."""
        return tuple(kind.name for kind in self.kinds)

    def draw(self, seed: int, n: int, split: str = TRAIN, *, start: int = 0) -> Asked:
        """Questions start .. start + n - 1 of an endless stream, a pure function of (seed, split, number).

        Kinds are equally likely; of a kind, what it is about; given that, the answers that the split has; given those, scenes follow the
        odds of the world.

        Args:
            seed: chooses the stream.
            n: number of questions.
            split: "train", "held_out" or "combinations".
            start: number of the first one.

        Raises:
            ValueError: n is below 1, or the split is unknown or empty.
        """
        if n < 1 or start < 0:
            raise ValueError(
                f"{n} questions from number {start}; expected at least one question and a number of 0 or more"
            )
        if self.world.distribution(split).sum() == 0:
            raise ValueError(f"world {self.world.name!r} has no held-out combinations; its split {split!r} is empty")
        # Five numbers for each question, whatever its kind: question i is then the same in every call that holds it.
        noise = uniforms(key_of("questions", self.world.name, split, seed), start, n, 5)
        kinds = (noise[:, 0] * len(self.kinds)).astype(np.int64)
        rows, choices = np.zeros(n, np.int64), np.zeros(n, np.int64)
        texts, answers = [""] * n, [""] * n
        for number, kind in enumerate(self.kinds):
            some = np.flatnonzero(kinds == number)
            group = self._group(number, split)
            rows[some], about, answer, choices[some] = group.draw(noise[some, 1:4])
            wording = (noise[some, 4] * len(kind.wordings)).astype(np.int64)
            for i, place in enumerate(some.tolist()):
                texts[place] = kind.wordings[wording[i]].format(*kind.about[about[i]])
                answers[place] = kind.answers[answer[i]]
        return Asked(self.world, rows, kinds, texts, answers, choices, split)

    def _group(self, number: int, split: str) -> _Group:
        key = (number, split)
        if key not in self._groups:
            self._groups[key] = _Group(self.kinds[number], self.world.distribution(split))
        return self._groups[key]


class _Group:
    """Scenes of a split sorted by what a kind asks about and by the answer, so that both can be drawn before the scene.

    Args:
        kind: of question.
        odds: (N,) of the scenes.
    """

    def __init__(self, kind: QuestionKind, odds: np.ndarray) -> None:
        rows, about = np.nonzero((kind.table >= 0) & (odds > 0)[:, None])
        keys = about * len(kind.answers) + kind.table[rows, about]
        order = np.argsort(keys, kind="stable")
        self.rows, self.sums = rows[order], odds[rows[order]].cumsum()
        self.keys, starts = np.unique(keys[order], return_index=True)
        self.about, self.answer = np.divmod(self.keys, len(kind.answers))
        self.starts = np.append(starts, len(order))
        self.first = np.flatnonzero(
            np.diff(self.about, prepend=-1)
        )  # of the answers about each thing that can be asked
        self.count = np.diff(np.append(self.first, len(self.about)))

    def draw(self, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rows, about, answers, number of possible answers), (n,) int64 each, from (n, 3) numbers in [0, 1)."""
        thing = (noise[:, 0] * len(self.first)).astype(np.int64)
        place = self.first[thing] + (noise[:, 1] * self.count[thing]).astype(np.int64)
        begin, end = self.starts[place], self.starts[place + 1]
        below = np.where(begin > 0, self.sums[begin - 1], 0.0)
        at = np.searchsorted(self.sums, below + noise[:, 2] * (self.sums[end - 1] - below), side="right")
        # Clipped, since a sum may be rounded past the end of its group.
        return self.rows[at.clip(begin, end - 1)], self.about[place], self.answer[place], self.count[thing]


def _each(things: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((one,) for one in things)


def _colour(about: Sequence[str], table: np.ndarray) -> QuestionKind:
    words = ("What colour is {0}?", "Which colour does {0} have?", "Name the colour of {0}.")
    return QuestionKind("colour", words, _each(about), COLOURS, table)


def _shape(about: Sequence[str], table: np.ndarray) -> QuestionKind:
    words = ("What shape is {0}?", "Which shape does {0} have?", "Name the shape of {0}.")
    return QuestionKind("shape", words, _each(about), SHAPES, table)


def _place(about: Sequence[str], table: np.ndarray) -> QuestionKind:
    words = ("Where is {0}?", "In which corner is {0}?", "Where does one see {0}?")
    return QuestionKind("place", words, _each(about), QUADRANTS, table)


def _count(world: ShapesWorld) -> QuestionKind:
    """Objects in each half of the picture."""
    y, x = np.divmod(world.places, LATTICE)
    table = np.stack([(side < LATTICE // 2).sum(axis=1) for side in (x, y)], axis=1)
    counts = np.stack([table[:, 0], world.num_objects - table[:, 0], table[:, 1], world.num_objects - table[:, 1]], 1)
    words = (
        "How many objects are in the {0}?",
        "Count the objects in the {0}.",
        "What is the number of objects in the {0}?",
    )
    return QuestionKind("count", words, _each(HALVES), NUMBERS[: world.num_objects + 1], counts)


def _one_object(world: ShapesWorld) -> tuple[QuestionKind, ...]:
    about, columns = ("the object",), {name: column[:, None] for name, column in world.columns.items()}
    sizes = ("What size is {0}?", "How large is {0}?", "Is {0} small or large?")
    return (
        _colour(about, columns["colour"]),
        _shape(about, columns["shape"]),
        QuestionKind("size", sizes, _each(about), SIZES, columns["size"]),
        _place(about, columns["quadrant"]),
        _count(world),
    )


def _two_objects(world: ShapesWorld) -> tuple[QuestionKind, ...]:
    columns, rows = world.columns, np.arange(len(world.places))
    y, x = np.divmod(world.places, LATTICE)
    quadrants = (y >= LATTICE // 2) * 2 + (x >= LATTICE // 2)
    by_shape, by_colour = tuple(f"the {one}" for one in SHAPES), tuple(f"the {one} object" for one in COLOURS)
    colour, shape = np.full((len(rows), len(SHAPES)), -1), np.full((len(rows), len(COLOURS)), -1)
    place = np.full((len(rows), len(SHAPES) + len(COLOURS)), -1)
    for number, suffix in enumerate(("", "2")):
        its_shape, its_colour = columns["shape" + suffix], columns["colour" + suffix]
        colour[rows, its_shape], shape[rows, its_colour] = its_colour, its_shape
        place[rows, its_shape] = place[rows, len(SHAPES) + its_colour] = quadrants[:, number]
    return (
        _colour(by_shape, colour),
        _shape(by_colour, shape),
        _place(by_shape + by_colour, place),
        _count(world),
        _relation("side", ("left", "right"), SIDES, columns, x),
        _relation("height", ("above", "below"), HEIGHTS, columns, y),
    )


def _relation(
    name: str, answers: tuple[str, str], words: tuple[str, ...], columns: Mapping[str, np.ndarray], along: np.ndarray
) -> QuestionKind:
    """How one shape stands to another along an axis (N, 2); not asked where they stand level."""
    pairs = list(permutations(range(len(SHAPES)), 2))
    shapes = np.stack([columns["shape"], columns["shape2"]], axis=1)
    table = np.full((len(shapes), len(pairs)), -1)
    for number, pair in enumerate(pairs):
        for turn in (1, -1):
            named = (shapes[:, ::turn] == pair).all(axis=1) & (along[:, 0] != along[:, 1])
            first, second = along[:, ::turn].T
            table[named, number] = (first > second)[named]
    about = tuple((f"the {SHAPES[one]}", f"the {SHAPES[other]}") for one, other in pairs)
    return QuestionKind(name, words, about, answers, table)


def _rolling(world: MovingWorld) -> tuple[QuestionKind, ...]:
    places = world.places
    y, x = np.divmod(places[:, [0, -1]], LATTICE)
    moves = np.diff(places, axis=1)[:, [0, -1]]  # -4, -1, 4, 1 cells: up, left, down, right
    headings = np.select([moves == -LATTICE, moves == -1, moves == LATTICE], [0, 1, 2], 3)
    # A ball turns left of its own accord; straight back and right come from a bounce alone, so that the clip shows every bounce but one on
    # the first move, before which no heading is seen.
    changes = visible_turns(places)[:, None] // 4 ** np.arange(world.num_steps - 2) % 4
    bounces = (changes >= 2).sum(axis=1)[:, None]
    ways = ("Which way does the ball roll {0}?", "In which direction does the ball roll {0}?")
    where = ("Where does the ball {0}?", "In which corner does the ball {0}?")
    often = (
        "How often does the ball bounce?",
        "How many times does the ball bounce?",
        "How often does the ball hit a wall?",
    )
    return (
        _colour(("the ball",), world.columns["colour"][:, None]),
        QuestionKind("place", where, _each(("start", "end")), QUADRANTS, (y >= LATTICE // 2) * 2 + (x >= LATTICE // 2)),
        QuestionKind("direction", ways, _each(("first", "last")), DIRECTIONS, headings),
        QuestionKind("bounces", often, ((),), TIMES[: world.num_steps - 1], bounces),
    )
