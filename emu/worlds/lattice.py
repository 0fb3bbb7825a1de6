"""Worlds of still pictures: at most two objects on a lattice of 4x4 cells, each picture with a number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emu.worlds import tiles
from emu.worlds.tiles import LATTICE
from emu.worlds.world import World


class LatticeWorld(World):
    """A world whose variable "picture", and every variable that shows as one, numbers lattices.

    Attributes:
        cells: (M, 16) int64 tile of each cell of each picture, all different; subclasses give it.
    """

    cells: np.ndarray

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys of all pictures in ascending order, their numbers): there are 43,200 scenes of two objects to find a picture among."""
        keys = lattice_keys(self.cells)
        order = np.argsort(keys)
        return keys[order], order

    def render(self, rows: np.ndarray, size: int = 32) -> np.ndarray:
        """uint8 (n, size, size, 3) pictures of these numbers; sizes are multiples of 32.

        Raises:
            ValueError: another size.
        """
        return tiles.draw(self.cells[rows], size)

    def grade(self, pixels: np.ndarray) -> np.ndarray:
        """(n,) int64 numbers of uint8 (n, size, size, 3) pictures, -1 for those that are none of this world.

        Raises:
            ValueError: pictures of another shape, type or size.
        """
        return self.numbers_of(tiles.read(pixels))

    def numbers_of(self, cells: np.ndarray) -> np.ndarray:
        """(n,) int64 numbers of lattices (n, 16), -1 for those that are none of this world."""
        keys, order = self._sorted
        numbers = order[np.searchsorted(keys, lattice_keys(cells)).clip(max=len(keys) - 1)]
        return np.where((self.cells[numbers] == cells).all(axis=1), numbers, -1)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of answers to requests.

    Attributes:
        right: (n,) bool possible answers: everything asked for is there, and nothing else has changed.
        stays: (n, 16) bool cells that had to stay: every possible answer shows there what the picture of the request does.
        changed: (n, 16) bool those of them that did not.
    """

    right: np.ndarray
    stays: np.ndarray
    changed: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(n,) bool answers in which every cell that had to stay did."""
        return np.logical_not(self.changed.any(axis=1))


class RequestWorld(LatticeWorld):
    """A world of requests to change or complete a picture."""

    def sources_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """(n,) int64 numbers of the pictures that prompts (n,) ask to change."""
        raise NotImplementedError(f"world {self.name!r} does not say what its prompts ask to change")

    def stays(self, task: str, given: np.ndarray) -> np.ndarray:
        """(n, 16) bool cells that had to stay, see `Verdict`."""
        question = self.task(task)
        table = self.table(question.target, question.given, full=True)
        prompts, inverse = np.unique(given, return_inverse=True)
        targets, _, owner = table.all_outcomes(prompts)
        same = self.cells[targets] == self.cells[self.sources_of(task, prompts)][owner]
        # The outcomes of a prompt lie side by side, so that one reduction per prompt says where all of them agree with the source.
        return np.logical_and.reduceat(same, np.searchsorted(owner, np.arange(len(prompts))))[inverse]

    def judge(self, task: str, given: np.ndarray, cells: np.ndarray) -> Verdict:
        """Judge answers, with the held-out combinations among the possible ones.

        Args:
            task: name of the task.
            given: (n,) int64 prompts.
            cells: (n, 16) int64 tiles of the answers, as `tiles.read` reads them.

        Raises:
            ValueError: a prompt never occurs.
        """
        right = np.isfinite(self.log2_probability(task, self.numbers_of(cells), given, full=True))
        stays = self.stays(task, given)
        return Verdict(right, stays, stays & (cells != self.cells[self.sources_of(task, given)]))

    def fingerprint(self) -> str:
        """See `World`; what documents show is covered too, since worlds of requests can differ in that alone."""
        digest = hashlib.sha256(super().fingerprint().encode())
        for name, numbers in sorted(self.variables.items()):
            digest.update(name.encode() + np.ascontiguousarray(numbers).tobytes())
        digest.update(np.ascontiguousarray(self.cells).tobytes())
        return digest.hexdigest()[:16]


def lattice_keys(cells: np.ndarray) -> np.ndarray:
    """(n,) numbers of lattices (n, 16), unique for those of at most two objects: the first and the last object and their cells."""
    filled = cells != tiles.EMPTY
    places = np.stack([filled.argmax(axis=1), LATTICE**2 - 1 - filled[:, ::-1].argmax(axis=1)], axis=1)
    return _key(np.take_along_axis(cells, places, axis=1), places)


def object_keys(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The same numbers (n,) from one or two objects in any order: their tiles (n, k) and cells (n, k)."""
    order = places.argsort(axis=1)[:, [0, -1]]
    return _key(np.take_along_axis(kinds, order, axis=1), np.take_along_axis(places, order, axis=1))


def objects_of_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(kinds (n, 2), places (n, 2)) of the first and the last object; twice the same for one, kinds of 0 for none."""
    rest, last_kind = np.divmod(keys, tiles.NUM_KINDS)
    rest, last = np.divmod(rest, LATTICE**2)
    first, first_kind = np.divmod(rest, tiles.NUM_KINDS)
    return np.stack([first_kind, last_kind], 1), np.stack([first, last], 1)


def lattice_of(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, 16) int64 lattices of objects: tiles (n, k) in cells (n, k)."""
    cells = np.zeros((len(kinds), LATTICE**2), np.int64)
    np.put_along_axis(cells, places, kinds, axis=1)
    return cells


def _key(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
    number = np.zeros(len(kinds), np.int64)
    for i in range(2):
        number = (number * LATTICE**2 + places[:, i]) * tiles.NUM_KINDS + kinds[:, i]
    return number


NOTHING = int(_key(np.zeros((1, 2), np.int64), np.array([[0, LATTICE**2 - 1]]))[0])
"""Number of the lattice without objects."""
