"""Rendered worlds whose probabilities are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

from emu.worlds.caption_table import CaptionTable, Filling, Rule
from emu.worlds.editing import EditWorld
from emu.worlds.examples import ExampleWorld
from emu.worlds.fills import FillWorld
from emu.worlds.lattice import LatticeWorld, RequestWorld
from emu.worlds.moving import BallWorld, MovingWorld
from emu.worlds.rates import RateWorld
from emu.worlds.shapes import ShapesWorld
from emu.worlds.world import COMBINATIONS, HELD_OUT, SPLITS, TRAIN, Draws, Task, World
from emu_tokenizers.registry import Registry


@cache
def shapes(num_objects: int = 1, unseen_kinds: bool = False) -> ShapesWorld:
    """The world of one or two objects, built once; see `ShapesWorld`."""
    return ShapesWorld(num_objects, unseen_kinds)


@cache
def moving(num_steps: int = 4, frames_per_step: int = 1) -> MovingWorld:
    """The world of a rolling ball, built once; see `MovingWorld`."""
    return MovingWorld(num_steps, frames_per_step)


@cache
def editing(num_objects: int = 1) -> EditWorld:
    """The world of pictures edited by words, built once; see `EditWorld`."""
    return EditWorld(num_objects)


@cache
def examples() -> ExampleWorld:
    """The world of pictures edited by example, built once; see `ExampleWorld`."""
    return ExampleWorld()


@cache
def fills(num_objects: int = 1) -> FillWorld:
    """The world of pictures with a hidden rectangle, built once; see `FillWorld`."""
    return FillWorld(num_objects)


@cache
def rates() -> RateWorld:
    """The world of a ball at three rates, built once; see `RateWorld`."""
    return RateWorld()


MORE_WORLDS: Registry[Callable[[], World]] = Registry(
    "world",
    {
        "edit-one": partial(editing, 1),
        "edit-two": partial(editing, 2),
        "examples": examples,
        "fill-one": partial(fills, 1),
        "fill-two": partial(fills, 2),
        "rates": rates,
    },
)
"""Worlds beside the three standard ones that recipes may name; an extension adds to it with `register(name, make)`."""
register = MORE_WORLDS.register


def standard_worlds(unseen_kinds: bool = False, frames_per_step: int = 1) -> dict[str, World]:
    """The three worlds that recipes train on and suites grade, by the names that their tables use."""
    return {"one": shapes(1, unseen_kinds), "two": shapes(2, unseen_kinds), "moving": moving(4, frames_per_step)}


def worlds_of(names: Iterable[str], unseen_kinds: bool = False) -> dict[str, World]:
    """The three standard worlds and those of `MORE_WORLDS` among the names; unknown names are left out."""
    wanted = set(names)
    more = {name: make() for name, make in MORE_WORLDS.items() if name in wanted}
    return standard_worlds(unseen_kinds) | more


__all__ = [
    "COMBINATIONS",
    "HELD_OUT",
    "MORE_WORLDS",
    "SPLITS",
    "TRAIN",
    "BallWorld",
    "CaptionTable",
    "Draws",
    "EditWorld",
    "ExampleWorld",
    "FillWorld",
    "Filling",
    "LatticeWorld",
    "MovingWorld",
    "RateWorld",
    "RequestWorld",
    "Rule",
    "ShapesWorld",
    "Task",
    "World",
    "editing",
    "examples",
    "fills",
    "moving",
    "rates",
    "register",
    "shapes",
    "standard_worlds",
    "worlds_of",
]
