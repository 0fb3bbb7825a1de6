"""Pictures edited by words: a picture, an instruction, and what may come of it.

Of one object, "it": recolour, move by one cell, move elsewhere (any other cell, each as likely), enlarge, add another object (in any free
cell, each as likely; large with probability .3), remove. Of two, "the red circle": recolour in a colour that neither has, move by one cell,
enlarge, remove, remove one of the two (either, as likely). Everything that an instruction does not speak of stays. The two objects of a
picture differ in shape and in colour, as in the world of two objects, and the pairs that are held out there are held out here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from emu.worlds import tiles
from emu.worlds.caption_table import Rule
from emu.worlds.lattice import NOTHING, RequestWorld, lattice_of, object_keys, objects_of_keys
from emu.worlds.moving import DIRECTIONS, STEPS
from emu.worlds.shapes import LARGE_ODDS, held_out_pairs, objects_of, one_scenes, two_scenes
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES
from emu.worlds.world import Task

RECOLOUR, MOVE, ELSEWHERE, ENLARGE, ADD, REMOVE, REMOVE_ONE = (
    "recolour", "move", "elsewhere", "enlarge", "add", "remove", "remove one"
)  # fmt: skip
ONE_WEIGHTS = {RECOLOUR: 0.25, MOVE: 0.2, ELSEWHERE: 0.1, ENLARGE: 0.15, ADD: 0.2, REMOVE: 0.1}
TWO_WEIGHTS = {RECOLOUR: 0.35, MOVE: 0.3, ENLARGE: 0.1, REMOVE: 0.15, REMOVE_ONE: 0.1}
"""Odds of the edits; where a scene does not allow one, those of the others grow in proportion."""
TASKS = (Task("edit", "request", "edited"),)
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
"""What an object is called, by `tiles.kind_of` without the size."""


@dataclass(frozen=True)
class Requests:
    """Edits of scenes of one kind.

    Attributes:
        scene: (n,) int64 the scene.
        words: (n,) int64 which of the texts of this kind of edit.
        edited: (n,) int64 `lattice_keys` of a picture that may come of it.
        probability: (n,) of these words and this picture given scene and kind of edit; they sum to one for each scene that allows it.
    """

    scene: np.ndarray
    words: np.ndarray
    edited: np.ndarray
    probability: np.ndarray


Offer = Callable[[np.ndarray, np.ndarray], Requests]
"""(tiles (n, k), cells (n, k)) of scenes -> all requests of a kind."""


class EditWorld(RequestWorld):
    """The world of edits of pictures of one or of two objects.

    Args:
        num_objects: of the pictures that are edited, 1 or 2.

    Raises:
        ValueError: another number of objects.
    """

    def __init__(self, num_objects: int = 1) -> None:
        if num_objects not in (1, 2):
            raise ValueError(f"num_objects is {num_objects}; this world edits pictures of 1 or 2 objects")
        offers = ONE_OFFERS if num_objects == 1 else TWO_OFFERS
        objects, places, odds = _scenes(num_objects)
        self.prompt_kinds = tuple(offers)
        self._texts = [text for texts, _ in offers.values() for text in texts]
        self._edit_of_text = np.repeat(np.arange(len(offers)), [len(texts) for texts, _ in offers.values()])
        made = [offer(objects, places) for _, offer in offers.values()]
        starts = np.searchsorted(self._edit_of_text, np.arange(len(offers)))
        words = np.concatenate([some.words + start for some, start in zip(made, starts, strict=True)])
        scene = np.concatenate([some.scene for some in made])
        edit = self._edit_of_text[words]
        weights = np.array(list((ONE_WEIGHTS if num_objects == 1 else TWO_WEIGHTS).values()))
        odds = odds[scene] * np.concatenate([some.probability for some in made]) * _shares(scene, edit, weights)
        source, edited = object_keys(objects, places)[scene], np.concatenate([some.edited for some in made])
        keys, numbers = np.unique(np.concatenate([source, edited]), return_inverse=True)
        source, edited = numbers[: len(source)], numbers[len(source) :]
        unseen = _never_shown(keys)
        self.cells = lattice_of(*objects_of_keys(keys))
        super().__init__(
            f"edit-{num_objects}",
            {"edit": edit, "words": words},
            odds,
            (Rule("instruction", 1.0, "{words}"),),
            {"words": self._texts},
            variables={"request": source * len(self._texts) + words, "edited": edited},
            tasks=TASKS,
            held_out=unseen[source] | unseen[edited],
            attributes={"edited": {"place": self._new_place, "size": self._new_size, "object": self._removed}},
        )

    def parts(self, variable: str, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """See `World`: a request is the picture and the instruction."""
        if variable == "request":
            source, words = np.divmod(numbers, len(self._texts))
            return [("picture", source), ("caption", words)]
        return [("picture" if variable == "edited" else variable, numbers)]

    def sources_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `RequestWorld`."""
        return given // len(self._texts)

    def kinds_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `World`: numbers of the edits."""
        return self._edit_of_text[given % len(self._texts)]

    def _change(self, edited: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tiles (n, 16) of the picture that is edited, (n, 16) bool cells that were filled anew, (n, 16) bool that were emptied)."""
        before, after = self.cells[self.sources_of("edit", given)], self.cells[edited]
        return (
            before,
            (before == tiles.EMPTY) & (after != tiles.EMPTY),
            (before != tiles.EMPTY) & (after == tiles.EMPTY),
        )

    def _new_place(self, edited: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Rank among the free cells of the one that was filled: every free cell is as likely, whatever else the picture shows."""
        before, filled, _ = self._change(edited, given)
        return _rank(before == tiles.EMPTY, filled)

    def _new_size(self, edited: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Size of the object in the cell that was filled."""
        _, filled, _ = self._change(edited, given)
        size = tiles.attributes_of(np.where(filled, self.cells[edited], 0).max(axis=1))[2]
        return np.where(filled.sum(axis=1) == 1, size, -1)

    def _removed(self, edited: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Rank among the objects of the one that is gone."""
        before, filled, emptied = self._change(edited, given)
        return np.where(filled.any(axis=1), -1, _rank(before != tiles.EMPTY, emptied))


def _rank(among: np.ndarray, one: np.ndarray) -> np.ndarray:
    """(n,) how many cells of `among` (n, 16) come before the single one of `one` (n, 16); -1 where that is not a single one."""
    before = among.cumsum(axis=1) - among
    return np.where(one.sum(axis=1) == 1, np.take_along_axis(before, one.argmax(axis=1)[:, None], axis=1)[:, 0], -1)


def _scenes(num_objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tiles (n, k), cells (n, k), odds (n,)) of the pictures that are edited."""
    columns, odds = one_scenes() if num_objects == 1 else two_scenes()
    kinds, places = objects_of(columns, num_objects)
    if num_objects == 1:
        return kinds, places, odds
    # Objects of two are large, as in the world of two objects, and one of them small where it is to be enlarged.
    small = [kinds - np.array(which) for which in ((1, 0), (0, 1))]
    share = TWO_WEIGHTS[ENLARGE]
    odds = np.concatenate([odds * (1 - share), odds * share / 2, odds * share / 2])
    return np.concatenate([kinds, *small]), np.concatenate([places] * 3), odds


def _shares(scene: np.ndarray, edit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) odds of the edit of each row given its scene: its weight among the weights of those that the scene allows."""
    allowed = np.zeros((scene.max() + 1, len(weights)))
    allowed[scene, edit] = 1
    return weights[edit] / (allowed @ weights)[scene]


def _never_shown(keys: np.ndarray) -> np.ndarray:
    """(n,) bool pictures of a pair of objects that the world of two objects holds out, in whatever sizes."""
    kinds, places = objects_of_keys(keys)
    pairs = places[:, 0] != places[:, 1]
    pairs &= (kinds != tiles.EMPTY).all(axis=1)
    large = np.where(pairs[:, None], kinds + 1 - tiles.attributes_of(np.maximum(kinds, 1))[2], 1)
    return pairs & held_out_pairs(large)


def _others(kinds: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(which object an instruction names, its shape (n,), its colour (n,)) for each object of scenes."""
    return [(i, *tiles.attributes_of(kinds[:, i])[:2]) for i in range(kinds.shape[1])]


def _replaced(array: np.ndarray, which: int, value: np.ndarray) -> np.ndarray:
    """A copy of (n, k) with another column."""
    copy = array.copy()
    copy[:, which] = value
    return copy


def _gather(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], counted: int) -> Requests:
    """Requests from (scenes (m,), words (m,), edited (m,)); for each scene all are as likely."""
    scene, words, edited = (np.concatenate(some) for some in zip(*parts, strict=True))
    return Requests(scene, words, edited, 1 / np.bincount(scene, minlength=counted)[scene])


def recolour(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """Another colour than any in the picture; objects are named where there are two."""
    parts = []
    shown = [tiles.attributes_of(kinds[:, i])[1] for i in range(kinds.shape[1])]
    rows = _editable(kinds)
    for i, shape, colour in _others(kinds):
        size = tiles.attributes_of(kinds[:, i])[2]
        for new in range(len(COLOURS)):
            some = rows[np.all([there[rows] != new for there in shown], axis=0)]
            changed = _replaced(kinds, i, tiles.kind_of(shape, np.full_like(colour, new), size))
            words = _name(kinds, i, some) * len(COLOURS) + new
            parts.append((some, words, object_keys(changed[some], places[some])))
    return _gather(parts, len(kinds))


def move(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """One cell up, left, down or right, where there is room."""
    parts = []
    rows = _editable(kinds)
    for i in range(kinds.shape[1]):
        for direction in range(len(DIRECTIONS)):
            y, x = np.divmod(places[:, i], LATTICE)
            y, x = y + STEPS[direction, 0], x + STEPS[direction, 1]
            to = y * LATTICE + x
            room = (y >= 0) & (y < LATTICE) & (x >= 0) & (x < LATTICE)
            room &= ~(np.delete(places, i, axis=1) == to[:, None]).any(axis=1)
            some = rows[room[rows]]
            words = _name(kinds, i, some) * len(DIRECTIONS) + direction
            parts.append((some, words, object_keys(kinds[some], _replaced(places, i, to)[some])))
    return _gather(parts, len(kinds))


def elsewhere(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """The only object in any other cell."""
    rows = np.arange(len(kinds))
    shifts = range(1, LATTICE**2)
    parts = [(rows, np.zeros_like(rows), object_keys(kinds, (places + shift) % LATTICE**2)) for shift in shifts]
    return _gather(parts, len(kinds))


def enlarge(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """A small object becomes large."""
    parts = []
    for i in range(kinds.shape[1]):
        some = np.flatnonzero(tiles.attributes_of(kinds[:, i])[2] == 0)
        parts.append(
            (some, _name(kinds, i, some), object_keys(_replaced(kinds, i, kinds[:, i] + 1)[some], places[some]))
        )
    return _gather(parts, len(kinds))


def add(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """A second object that differs in shape and colour: in any free cell, each as likely, and large as often as objects are."""
    parts, odds = [], []
    shape, colour, _ = tiles.attributes_of(kinds[:, 0])
    for name in range(len(NAMES)):
        new_shape, new_colour = divmod(name, len(COLOURS))
        some = np.flatnonzero((shape != new_shape) & (colour != new_colour))
        for size, share in ((0, 1 - LARGE_ODDS), (1, LARGE_ODDS)):
            kind = tiles.kind_of(*(np.full(len(some), value) for value in (new_shape, new_colour, size)))
            for shift in range(1, LATTICE**2):
                to = (places[some, 0] + shift) % LATTICE**2
                edited = object_keys(np.stack([kinds[some, 0], kind], 1), np.stack([places[some, 0], to], 1))
                parts.append((some, np.full(len(some), name), edited))
                odds.append(np.full(len(some), 2 * share))
    made = _gather(parts, len(kinds))
    return Requests(made.scene, made.words, made.edited, made.probability * np.concatenate(odds))


def remove(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """An object goes."""
    parts = []
    some = _editable(kinds)
    for i in range(kinds.shape[1]):
        parts.append((some, _name(kinds, i, some), _without(kinds, places, i)[some]))
    return _gather(parts, len(kinds))


def remove_one(kinds: np.ndarray, places: np.ndarray) -> Requests:
    """Either of the objects goes."""
    some = _editable(kinds)
    parts = [(some, np.zeros_like(some), _without(kinds, places, i)[some]) for i in range(kinds.shape[1])]
    return _gather(parts, len(kinds))


def _without(kinds: np.ndarray, places: np.ndarray, which: int) -> np.ndarray:
    rest, cells = np.delete(kinds, which, axis=1), np.delete(places, which, axis=1)
    return object_keys(rest, cells) if rest.shape[1] else np.full(len(kinds), NOTHING)


def _editable(kinds: np.ndarray) -> np.ndarray:
    """Scenes that any edit but enlarging is offered for: all of one object, and of two those of large objects."""
    large = tiles.attributes_of(kinds)[2].all(axis=1)
    return np.flatnonzero(large if kinds.shape[1] > 1 else np.ones_like(large))


def _name(kinds: np.ndarray, which: int, rows: np.ndarray) -> np.ndarray:
    """(n,) number of the name of an object, 0 ("it") where it is the only one."""
    shape, colour, _ = tiles.attributes_of(kinds[rows, which])
    return shape * len(COLOURS) + colour if kinds.shape[1] > 1 else np.zeros_like(shape)


def _recolour_texts(objects: list[str]) -> list[str]:
    return [f"make {one} {colour}" for one in objects for colour in COLOURS]


def _move_texts(objects: list[str]) -> list[str]:
    return [f"move {one} {direction}" for one in objects for direction in DIRECTIONS]


_THE = [f"the {name}" for name in NAMES]
ONE_OFFERS: dict[str, tuple[list[str], Offer]] = {
    RECOLOUR: (_recolour_texts(["it"]), recolour),
    MOVE: (_move_texts(["it"]), move),
    ELSEWHERE: (["move it elsewhere"], elsewhere),
    ENLARGE: (["enlarge it"], enlarge),
    ADD: ([f"add a {name}" for name in NAMES], add),
    REMOVE: (["remove it"], remove),
}
TWO_OFFERS: dict[str, tuple[list[str], Offer]] = {
    RECOLOUR: (_recolour_texts(_THE), recolour),
    MOVE: (_move_texts(_THE), move),
    ENLARGE: ([f"enlarge {one}" for one in _THE], enlarge),
    REMOVE: ([f"remove {one}" for one in _THE], remove),
    REMOVE_ONE: (["remove one object"], remove_one),
}
"""Kind of edit -> its texts, and which edits of it a scene allows."""
