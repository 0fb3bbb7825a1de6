"""Rendered worlds whose probabilities are known exactly."""

from __future__ import annotations

from functools import cache

from emu.worlds.caption_table import CaptionTable, Filling, Rule
from emu.worlds.moving import MovingWorld
from emu.worlds.shapes import ShapesWorld
from emu.worlds.world import COMBINATIONS, HELD_OUT, SPLITS, TRAIN, Draws, Task, World


@cache
def shapes(num_objects: int = 1, unseen_kinds: bool = False) -> ShapesWorld:
    """The world of one or two objects, built once; see `ShapesWorld`."""
    return ShapesWorld(num_objects, unseen_kinds)


@cache
def moving(num_steps: int = 4, frames_per_step: int = 1) -> MovingWorld:
    """The world of a rolling ball, built once; see `MovingWorld`."""
    return MovingWorld(num_steps, frames_per_step)


def standard_worlds(unseen_kinds: bool = False, frames_per_step: int = 1) -> dict[str, World]:
    """The three worlds that recipes train on and suites grade, by the names that their tables use."""
    return {"one": shapes(1, unseen_kinds), "two": shapes(2, unseen_kinds), "moving": moving(4, frames_per_step)}


__all__ = [
    "COMBINATIONS",
    "HELD_OUT",
    "SPLITS",
    "TRAIN",
    "CaptionTable",
    "Draws",
    "Filling",
    "MovingWorld",
    "Rule",
    "ShapesWorld",
    "Task",
    "World",
    "moving",
    "shapes",
    "standard_worlds",
]
