"""Pictures with a hidden rectangle: what stands in its cells, given the rest and a caption.

Scenes are those of one or of two objects. Of one, the rectangle has 2x2, 2x4 or 4x2 cells; of two, 2x2. Rectangles that hide an object are
three times as likely as the others. Captions name every object, or only their number, and then what is hidden is free in all that the rest
does not show.
"""

from __future__ import annotations

import numpy as np

from emu.worlds import tiles
from emu.worlds.caption_table import CaptionTable, Rule
from emu.worlds.lattice import RequestWorld, lattice_keys, lattice_of
from emu.worlds.shapes import WORDS, held_out_pairs, objects_of, one_scenes, two_scenes
from emu.worlds.tiles import LATTICE
from emu.worlds.world import Task

TASKS = (Task("fill", "request", "picture"),)
REST = "rest"
"""The variable that shows a picture with hidden cells."""
HIDING = 3.0
"""How much likelier a rectangle that hides an object is than one that does not."""
ONE_RULES = (Rule("named", 0.7, "a {colour} {shape}"), Rule("unnamed", 0.3, "one object"))
TWO_RULES = (Rule("named", 0.7, "a {colour} {shape} and a {colour2} {shape2}"), Rule("unnamed", 0.3, "two objects"))
ONE_EXTENTS, TWO_EXTENTS = ((2, 2), (2, 4), (4, 2)), ((2, 2),)


class FillWorld(RequestWorld):
    """The world of pictures of one or of two objects with a hidden rectangle; kinds: words of the caption, and hidden objects.

    Args:
        num_objects: of the pictures, 1 or 2.

    Raises:
        ValueError: another number of objects.
    """

    def __init__(self, num_objects: int = 1) -> None:
        if num_objects not in (1, 2):
            raise ValueError(f"num_objects is {num_objects}; this world has pictures of 1 or 2 objects")
        columns, odds = one_scenes() if num_objects == 1 else two_scenes()
        objects, places = objects_of(columns, num_objects)
        self.cells = lattice_of(objects, places)
        hidden = rectangles(ONE_EXTENTS if num_objects == 1 else TWO_EXTENTS)
        weights = np.where(hidden[:, places].any(axis=2), HIDING, 1.0)  # (R, scenes)
        rectangle, scene = (some.ravel() for some in np.indices(weights.shape))
        rules = ONE_RULES if num_objects == 1 else TWO_RULES
        shown = {name: column[scene] for name, column in columns.items()}
        captions = CaptionTable(rules, WORDS, shown)
        rest, first = _rests(self.cells, hidden)
        self._num_captions, self._num_objects = len(captions), num_objects
        self._hidden, self._completed = hidden[rectangle[first]], scene[first]
        self.prompt_kinds = tuple(f"{rule.name}, {count} hidden" for rule in rules for count in range(num_objects + 1))
        super().__init__(
            f"fill-{num_objects}",
            {**shown, "rectangle": rectangle},
            (odds * weights / weights.sum(axis=0)).ravel(),
            rules,
            WORDS,
            variables={"picture": scene, "request": rest[:, None] * len(captions) + captions.ids},
            tasks=TASKS,
            held_out=held_out_pairs(objects)[scene],
            attributes={"picture": {"place": self._place, "size": self._size, "object": self._object}},
        )

    def parts(self, variable: str, numbers: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """See `World`: a request is a caption and a picture with hidden cells, which the answer completes."""
        if variable == "request":
            rest, caption = np.divmod(numbers, self._num_captions)
            return [("caption", caption), (REST, rest)]
        return [(variable, numbers)]

    def sources_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `RequestWorld`; hidden cells of these pictures show anything."""
        return self.completed(given)

    def stays(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `RequestWorld`: what is not hidden."""
        return ~self.hidden_cells(given)

    def hidden_cells(self, given: np.ndarray) -> np.ndarray:
        """(n, 16) bool cells that prompts hide."""
        return self._hidden[given // self._num_captions]

    def rest_of(self, given: np.ndarray) -> np.ndarray:
        """(n, 16) int64 tiles that prompts show, empty where cells are hidden."""
        return np.where(self.hidden_cells(given), tiles.EMPTY, self.cells[self.completed(given)])

    def completed(self, given: np.ndarray) -> np.ndarray:
        """(n,) int64 a picture that shows what prompts show, and in the hidden cells anything."""
        return self._completed[given // self._num_captions]

    def kinds_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `World`."""
        missing = self._num_objects - (self.rest_of(given) != tiles.EMPTY).sum(axis=1)
        return self.captions.rule_of(given % self._num_captions) * (self._num_objects + 1) + missing

    def _found(self, picture: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 16) bool hidden cells, and tile (n,) of the first object that stands in one of them, 0 for none."""
        hidden = self.hidden_cells(given)
        filled = np.where(hidden, self.cells[picture], tiles.EMPTY)
        return hidden, np.take_along_axis(filled, (filled != 0).argmax(axis=1)[:, None], axis=1)[:, 0]

    def _place(self, picture: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Rank among the hidden cells of the first that holds an object."""
        hidden, found = self._found(picture, given)
        at = (hidden & (self.cells[picture] != tiles.EMPTY)).argmax(axis=1)[:, None]
        return np.where(found > 0, np.take_along_axis(hidden.cumsum(axis=1) - 1, at, axis=1)[:, 0], -1)

    def _size(self, picture: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Size of the first hidden object."""
        found = self._found(picture, given)[1]
        return np.where(found > 0, tiles.attributes_of(np.maximum(found, 1))[2], -1)

    def _object(self, picture: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Shape and colour of the first hidden object, as one number."""
        found = self._found(picture, given)[1]
        return np.where(found > 0, (found - 1) // len(tiles.SIZES), -1)


def rectangles(extents: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(R, 16) bool all rectangles of these numbers of rows and columns."""
    found = []
    for height, width in extents:
        for y in range(LATTICE - height + 1):
            for x in range(LATTICE - width + 1):
                mask = np.zeros((LATTICE, LATTICE), bool)
                mask[y : y + height, x : x + width] = True
                found.append(mask.ravel())
    return np.stack(found)


def _rests(cells: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of each scene (n, 16) by each rectangle (R, 16): (its number (R * n,), a row (m,) that shows each number)."""
    # One rectangle at a time: all at once would be lattices of hundreds of megabytes.
    keys = np.stack([lattice_keys(np.where(one, tiles.EMPTY, cells)) for one in hidden])
    keys += np.arange(len(hidden))[:, None] * (keys.max() + 1)
    _, first, numbers = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    return numbers, first
