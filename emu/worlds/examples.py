"""Pictures edited by example, without words: what was done to one picture is to be done to another.

A document shows a picture, the same after one of eight edits (made red, green or blue; moved by one cell up, left, down or right;
enlarged), and a second picture; the answer is the second picture after the same edit. All second pictures allow all edits: their object is
small, yellow, purple or cyan, and stands in one of the four inner cells. So the edit cannot be guessed from them: without the example each
of the eight is as likely.
"""

from __future__ import annotations

import numpy as np

from emu.worlds import tiles
from emu.worlds.caption_table import Rule
from emu.worlds.lattice import RequestWorld, lattice_of, object_keys, objects_of_keys
from emu.worlds.moving import DIRECTIONS, STEPS
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES
from emu.worlds.world import Task

NEW_COLOURS, OLD_COLOURS = (0, 1, 2), (3, 4, 5)
INNER = (5, 6, 9, 10)
EDITS = (*(f"make it {COLOURS[i]}" for i in NEW_COLOURS), *(f"move it {name}" for name in DIRECTIONS), "enlarge it")
HELD_OUT_EDITS = ((0, 0), (4, 3))
"""(edit, shape of the second picture) that training never shows: making circles red, moving crosses left."""
BY_EXAMPLE, WITHOUT = "by-example", "without-example"
TASKS = (Task(BY_EXAMPLE, "example", "edited"), Task(WITHOUT, "picture", "edited"))


class ExampleWorld(RequestWorld):
    """The world of edits that are shown by one example; a picture's caption is the edit in words, and no task shows it."""

    prompt_kinds = EDITS

    def __init__(self) -> None:
        first, second, edit = _pairs()
        keys = [object_keys(*_objects(some)) for some in (first, second)]
        after = [object_keys(*edited(*_objects(some), edit)) for some in (first, second)]
        known, numbers = np.unique(np.concatenate([*keys, *after]), return_inverse=True)
        a, b, a_after, b_after = numbers.reshape(4, -1)
        size = len(known)
        self.cells = lattice_of(*objects_of_keys(known))
        by_edit = np.bincount(edit)  # second pictures, edits and examples of an edit are each as likely
        super().__init__(
            "examples",
            {"edit": edit},
            1 / (len(EDITS) * by_edit[edit]),
            (Rule("words", 1.0, "{edit}"),),
            {"edit": EDITS},
            variables={"picture": b, "example": (a * size + a_after) * size + b, "edited": b_after},
            tasks=TASKS,
            held_out=np.any([(edit == one) & (second[0] == shape) for one, shape in HELD_OUT_EDITS], axis=0),
            attributes={"edited": {"edit": self._edit}},
        )

    def parts(self, variable: str, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """See `World`: an example is three pictures."""
        if variable == "example":
            rest, b = np.divmod(numbers, len(self.cells))
            return [("picture", some) for some in (*np.divmod(rest, len(self.cells)), b)]
        return [("picture" if variable == "edited" else variable, numbers)]

    def sources_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `RequestWorld`."""
        return given % len(self.cells)

    def kinds_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `World`; without an example a prompt is of no kind, and -1."""
        if task == WITHOUT:
            return np.full(len(given), -1)
        rest = given // len(self.cells)
        return self._between(*np.divmod(rest, len(self.cells)))

    def _edit(self, edited: np.ndarray, given: np.ndarray) -> np.ndarray:
        """The edit that leads from the second picture to the answer."""
        return self._between(self.sources_of(WITHOUT, given), edited)

    def _between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(n,) the edit that makes one picture of the other, -1 where none does."""
        kinds, places = (some[:, :1] for some in objects_of_keys(self._keys_of(before)))
        found = np.full(len(before), -1)
        for edit in range(len(EDITS)):
            made = object_keys(*edited(kinds, places, np.full(len(before), edit)))
            found[made == self._keys_of(after)] = edit
        return found

    def _keys_of(self, numbers: np.ndarray) -> np.ndarray:
        places = (self.cells[numbers] != tiles.EMPTY).argmax(axis=1)[:, None]
        return object_keys(np.take_along_axis(self.cells[numbers], places, axis=1), places)


def edited(kinds: np.ndarray, places: np.ndarray, edit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objects after edits: tiles (n, 1) and cells (n, 1), which may lie outside the lattice where there is no room."""
    shape, colour, size = tiles.attributes_of(kinds[:, 0])
    step = _step_of(edit)
    new_colour = np.where(edit < len(NEW_COLOURS), edit, colour)
    new_size = np.where(edit == len(EDITS) - 1, 1, size)
    return tiles.kind_of(shape, new_colour, new_size)[:, None], places + (step[:, 0] * LATTICE + step[:, 1])[:, None]


def _step_of(edit: np.ndarray) -> np.ndarray:
    """(n, 2) rows and columns that edits (n,) move an object by."""
    move = edit - len(NEW_COLOURS)
    return np.where(((move >= 0) & (move < len(DIRECTIONS)))[:, None], STEPS[move.clip(0, len(DIRECTIONS) - 1)], 0)


def _pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((shape, colour, place), n) of first and of second pictures, and the edit (n,): all that go together."""
    axes = (len(SHAPES), len(OLD_COLOURS), LATTICE**2, len(SHAPES), len(OLD_COLOURS), len(INNER), len(EDITS))
    shape, colour, place, shape2, colour2, place2, edit = np.indices(axes).reshape(len(axes), -1)
    step = _step_of(edit)
    y, x = place // LATTICE + step[:, 0], place % LATTICE + step[:, 1]
    fits = (y >= 0) & (y < LATTICE) & (x >= 0) & (x < LATTICE)
    first = np.stack([shape, np.array(OLD_COLOURS)[colour], place])
    second = np.stack([shape2, np.array(OLD_COLOURS)[colour2], np.array(INNER)[place2]])
    return first[:, fits], second[:, fits], edit[fits]


def _objects(scenes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tiles (n, 1), cells (n, 1)) of small objects of (shape, colour, place)."""
    shape, colour, place = scenes
    return tiles.kind_of(shape, colour, np.zeros_like(shape))[:, None], place[:, None]
