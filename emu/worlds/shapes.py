"""Still pictures of one or two objects on a lattice of 4x4 cells.

One object: shape, colour, size (large with probability .3) and place are independent. Two objects differ in shape and in colour, are large,
and stand in different cells. Captions name some attributes and leave others free, say where things are, count, or say what is not so;
each kind of caption has stated odds that do not depend on the scene.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emu.randomness import key_of, uniforms
from emu.worlds import tiles
from emu.worlds.caption_table import Columns, Filling, Rule
from emu.worlds.lattice import LatticeWorld, lattice_of
from emu.worlds.tiles import COLOURS, LATTICE, SHAPES, SIZES
from emu.worlds.world import Task

NUM_BINS = 32
"""Bins along each side of a picture in which boxes are written."""
LARGE_ODDS = 0.3
HELD_OUT_SHARE = 0.1
"""Share of the pairs of objects that training never shows."""
RELATIONS = ("left of", "right of", "above", "below")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
UNSEEN_KINDS = ((0, 0), (1, 1), (2, 2), (3, 3))
"""(shape, colour) that `unseen_kinds` holds out: red circle, green square, blue triangle, yellow cross."""

TASKS = (
    Task("text-to-image", "caption", "picture"),
    Task("image-to-text", "picture", "caption"),
    Task("image-to-boxes", "picture", "boxes"),
    Task("boxes-to-image", "boxes", "picture"),
    Task("text-to-boxes", "caption", "boxes"),
)
ONE_RULES = (
    Rule("plain", 0.40, "a {colour} {shape}"),
    Rule("sized", 0.15, "a {size} {colour} {shape}"),
    Rule("placed", 0.15, "a {colour} {shape} in the {quadrant}"),
    Rule("counted", 0.10, "one {colour} object"),
    Rule("reworded", 0.10, "here is a {shape}, {colour}"),
    Rule("negated", 0.10, "a {shape} that is not {other}", lambda columns: _one_negated(columns)),
)
TWO_RULES = (
    Rule("plain", 0.40, "a {colour} {shape} and a {colour2} {shape2}", lambda columns: _orders(columns)),
    Rule("relation", 0.30, "a {colour} {shape} {relation} a {colour2} {shape2}", lambda columns: _relations(columns)),
    Rule("counted", 0.15, "two objects, one is a {colour} {shape}", lambda columns: _orders(columns)),
    Rule(
        "negated", 0.15, "a {colour} {shape} and a {shape2} that is not {other}", lambda columns: _two_negated(columns)
    ),
)
WORDS = {
    "shape": SHAPES,
    "shape2": SHAPES,
    "colour": COLOURS,
    "colour2": COLOURS,
    "other": COLOURS,
    "size": SIZES,
    "quadrant": QUADRANTS,
    "relation": RELATIONS,
}


class ShapesWorld(LatticeWorld):
    """The world of one or of two objects.

    Args:
        num_objects: 1 or 2.
        unseen_kinds: hold out four pairs of shape and colour altogether, instead of pairs of objects.

    Attributes:
        cells: (N, 16) int64 tile of each cell of each scene; the picture variable is the number of the scene.
        kinds, places: (N, num_objects) int64 tile and cell of each object.
        boxes: (N, num_objects, 4) int64 first and last bin (y0, x0, y1, x1) of each object, in raster order of their cells.

    Raises:
        ValueError: another number of objects.
    """

    def __init__(self, num_objects: int = 1, unseen_kinds: bool = False) -> None:
        if num_objects not in (1, 2):
            raise ValueError(f"num_objects is {num_objects}; this world has scenes of 1 or 2 objects")
        self.num_objects = num_objects
        columns, probability = one_scenes() if num_objects == 1 else two_scenes()
        self.kinds, self.places = objects_of(columns, num_objects)  # (N, num_objects) each
        self.cells = lattice_of(self.kinds, self.places)
        self.boxes = _boxes(self.kinds, self.places)
        box_numbers = _box_number(self.boxes)
        super().__init__(
            f"shapes-{num_objects}",
            columns,
            probability,
            ONE_RULES if num_objects == 1 else TWO_RULES,
            WORDS,
            variables={"picture": np.arange(len(probability)), "boxes": box_numbers},
            tasks=TASKS,
            held_out=_unseen(columns, num_objects) if unseen_kinds else held_out_pairs(self.kinds),
            attributes=self._attributes(columns, box_numbers),
        )
        self._box_rows = dict(zip(box_numbers.tolist(), range(len(box_numbers)), strict=True))

    def _attributes(self, columns: Columns, box_numbers: np.ndarray) -> dict[str, Mapping[str, np.ndarray]]:
        if self.num_objects == 1:
            picture = {name: columns[name] for name in ("place", "size", "colour", "shape")}
            some = ("place", "size")
        else:
            pairs = np.unique(columns["place"] * LATTICE**2 + columns["place2"], return_inverse=True)[1]
            picture = {
                "places": pairs,
                "place": columns["place"],
                "colour": columns["colour"],
                "shape": columns["shape"],
            }
            some = ("places", "place")
        boxes = {name: np.full(box_numbers.max() + 1, -1) for name in some}
        for name in some:
            boxes[name][box_numbers] = picture[name]
        return {"picture": picture, "boxes": boxes}

    def read_boxes(self, boxes: np.ndarray) -> int:
        """Number of the boxes variable for (k, 4) bins, -1 where no scene of this world has such boxes."""
        boxes = np.asarray(boxes)
        if boxes.shape != self.boxes.shape[1:] or ((boxes < 0) | (boxes >= NUM_BINS)).any():
            return -1
        number = int(_box_number(boxes[None])[0])
        return number if number in self._box_rows else -1

    def boxes_of(self, number: int) -> np.ndarray:
        """(num_objects, 4) int64 bins of a number of the boxes variable."""
        return self.boxes[self._box_rows[number]]


def one_scenes() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attributes (N,) of all scenes of one object, and their odds (N,)."""
    shape, colour, size, place = (
        some.ravel() for some in np.indices((len(SHAPES), len(COLOURS), len(SIZES), LATTICE**2))
    )
    odds = np.where(size == 1, LARGE_ODDS, 1 - LARGE_ODDS) / (len(SHAPES) * len(COLOURS) * LATTICE**2)
    return {"shape": shape, "colour": colour, "size": size, "place": place, "quadrant": _quadrant(place)}, odds


def two_scenes() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attributes (N,) of all scenes of two objects, and their odds (N,)."""
    names = ("shape", "colour", "place", "shape2", "colour2", "place2")
    axes = np.indices((len(SHAPES), len(COLOURS), LATTICE**2) * 2).reshape(6, -1)
    columns = dict(zip(names, axes, strict=True))
    # The first object is the one in the earlier cell: a scene occurs once, not in two orders.
    legal = (
        (columns["place"] < columns["place2"])
        & (columns["shape"] != columns["shape2"])
        & (columns["colour"] != columns["colour2"])
    )
    columns = {name: column[legal] for name, column in columns.items()}
    return columns, np.full(int(legal.sum()), 1 / legal.sum())


def _quadrant(place: np.ndarray) -> np.ndarray:
    y, x = np.divmod(place, LATTICE)
    return (y >= LATTICE // 2) * 2 + (x >= LATTICE // 2)


def objects_of(columns: Columns, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """(tiles (N, num_objects), cells (N, num_objects)) of scenes."""
    if num_objects == 1:
        kinds = [tiles.kind_of(columns["shape"], columns["colour"], columns["size"])]
        return np.stack(kinds, 1), columns["place"][:, None]
    large = np.ones_like(columns["shape"])
    kinds = [tiles.kind_of(columns["shape" + i], columns["colour" + i], large) for i in ("", "2")]
    return np.stack(kinds, 1), np.stack([columns["place"], columns["place2"]], 1)


def _boxes(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
    step = NUM_BINS // LATTICE
    extent = np.array([tiles.EXTENT[name] * step // 8 for name in SIZES])[tiles.attributes_of(kinds)[2]]
    y, x = np.divmod(places, LATTICE)
    inset = (step - extent) // 2
    first_y, first_x = y * step + inset, x * step + inset
    return np.stack([first_y, first_x, first_y + extent - 1, first_x + extent - 1], axis=-1)


def _box_number(boxes: np.ndarray) -> np.ndarray:
    """(n,) one number for (n, k, 4) boxes of objects that fit a cell: the first corner and the extent of each."""
    number = np.zeros(len(boxes), np.int64)
    for k in range(boxes.shape[1]):
        y0, x0, y1, x1 = (boxes[:, k, i] for i in range(4))
        # A model may write any four bins: those that are no object's box get an extent of their own, and so a number that no scene has.
        legal = (y1 - y0 == x1 - x0) & (y1 >= y0)
        extent = np.where(legal & (y1 - y0 == NUM_BINS // LATTICE - 1), 1, np.where(legal, 0, 2))
        number = (number * NUM_BINS * NUM_BINS + y0 * NUM_BINS + x0) * 3 + extent
    return number


def held_out_pairs(kinds: np.ndarray) -> np.ndarray:
    """(n,) bool whether tiles (n, k) are a pair that is never shown, a fixed tenth of all, in whatever places."""
    if kinds.shape[1] == 1:
        return np.zeros(len(kinds), bool)
    # By kinds alone and in either order, so that a held-out pair is unseen in every place and every wording.
    pair = kinds.min(axis=1) * tiles.NUM_KINDS + kinds.max(axis=1)
    drawn = uniforms(key_of("held-out pairs"), 0, tiles.NUM_KINDS**2, 1)[:, 0]
    return drawn[pair] < HELD_OUT_SHARE


def _unseen(columns: Columns, num_objects: int) -> np.ndarray:
    held_out = np.zeros(len(columns["shape"]), bool)
    for suffix in ("", "2")[:num_objects]:
        for shape, colour in UNSEEN_KINDS:
            held_out |= (columns["shape" + suffix] == shape) & (columns["colour" + suffix] == colour)
    return held_out


def _one_negated(columns: Columns) -> list[Filling]:
    """Some other colour than the object's, each as likely."""
    odds = 1 / (len(COLOURS) - 1)
    others = [(columns["colour"] + step) % len(COLOURS) for step in range(1, len(COLOURS))]
    return [Filling({"shape": columns["shape"], "other": other}, odds) for other in others]


def _orders(columns: Columns) -> list[Filling]:
    """Either object first."""
    return [Filling(fields, 0.5) for fields in _both(columns)]


def _both(columns: Columns) -> list[dict[str, np.ndarray]]:
    names = ("shape", "colour")
    straight = {name + suffix: columns[name + suffix] for name in names for suffix in ("", "2")}
    turned = {name + suffix: columns[name + other] for name in names for suffix, other in (("", "2"), ("2", ""))}
    return [straight, turned]


def _relations(columns: Columns) -> list[Filling]:
    """Either object first, and one of the directions in which they differ, each as likely."""
    (y, x), (y2, x2) = np.divmod(columns["place"], LATTICE), np.divmod(columns["place2"], LATTICE)
    axes = 1.0 * (x != x2) + (y != y2)
    fillings = []
    for fields, sign in zip(_both(columns), (1, -1), strict=True):
        beside, upright = np.where(sign * (x2 - x) > 0, 0, 1), np.where(sign * (y2 - y) > 0, 2, 3)
        fillings.append(Filling({**fields, "relation": beside}, 0.5 * (x != x2) / axes))
        fillings.append(Filling({**fields, "relation": upright}, 0.5 * (y != y2) / axes))
    return fillings


def _two_negated(columns: Columns) -> list[Filling]:
    """Either object named in full, and of the other one a colour that neither has."""
    fillings = []
    for fields in _both(columns):
        for step in range(1, len(COLOURS)):
            other = (fields["colour2"] + step) % len(COLOURS)
            odds = np.where(other != fields["colour"], 0.5 / (len(COLOURS) - 2), 0.0)
            fillings.append(Filling({**fields, "other": other}, odds))
    return fillings
