"""Clips of a ball that rolls over a lattice of 4x4 cells.

A clip has one picture a step. The ball starts in any cell and heads up, left, down or right, each as likely; the first move goes that way.
Before every later move it turns left with probability .3. **Bounce**: where a move would leave the lattice, the heading is reversed and the
ball moves the other way, so that it never stands still. The heading is hidden: what a clip shows are the cells, and different headings can
show the same cells.
"""

from __future__ import annotations

import numpy as np

from emu.worlds import tiles
from emu.worlds.caption_table import Rule
from emu.worlds.tiles import COLOURS, LATTICE
from emu.worlds.world import Task, World

DIRECTIONS = ("up", "left", "down", "right")
"""In the order of left turns."""
TURN_ODDS = 0.3
PICTURES_PER_SECOND = 4
"""At which clips are shown whose captions say nothing of it."""
STEPS = np.array([(-1, 0), (0, -1), (1, 0), (0, 1)])
"""(row, column) of each direction."""
_BALL = 0  # the tile of a ball is a large circle

TASKS = (
    Task("text-to-video", "caption", "clip"),
    Task("continuation", "beginning", "clip"),
    Task("video-to-text", "clip", "caption"),
)
RULES = (
    Rule("full", 0.6, "a {colour} ball rolling {direction}"),
    Rule("direction", 0.2, "a ball rolling {direction}"),
    Rule("colour", 0.2, "a {colour} ball"),
)


class BallWorld(World):
    """A world of clips of one ball; its variable "clip" numbers what clips show.

    Attributes:
        num_steps: pictures of a clip; subclasses give it.
        frames_per_step: frames that show each picture; the temporal factor of the tokenizer, so that a picture is one frame of codes.
    """

    num_steps: int
    frames_per_step: int = 1
    rates: tuple[int, ...] = (PICTURES_PER_SECOND,)
    """Pictures a second that clips may have."""

    def rates_of(self, variable: str, numbers: np.ndarray) -> np.ndarray:
        """(n,) int64 pictures a second that values of a variable say."""
        return np.full(len(numbers), PICTURES_PER_SECOND)

    def at_rate(self, clips: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """(n,) int64 numbers of the clip variable, from what `grade` read in frames and the rates (n,) at which they are shown."""
        return clips

    def paths_of(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(colour (n,), places (n, num_steps)) of numbers of the clip variable."""
        places, rest = [], np.asarray(clips)
        for _ in range(self.num_steps):
            rest, place = np.divmod(rest, LATTICE**2)
            places.append(place)
        return rest % len(COLOURS), np.stack(places[::-1], axis=1)

    def cells_of(self, clips: np.ndarray) -> np.ndarray:
        """(n, num_steps, 16) int64 tile of each cell at each step."""
        colour, places = self.paths_of(clips)
        ball = tiles.kind_of(np.full_like(colour, _BALL), colour, np.ones_like(colour))
        cells = np.zeros((*places.shape, LATTICE**2), np.int64)
        np.put_along_axis(cells, places[..., None], np.broadcast_to(ball[:, None, None], (*places.shape, 1)), axis=2)
        return cells

    def render(self, rows: np.ndarray, size: int = 32) -> np.ndarray:
        """uint8 clips (n, num_steps * frames_per_step, size, size, 3) of hidden states.

        Raises:
            ValueError: a size that is not a multiple of 32.
        """
        return self.render_clips(self.variables["clip"][rows], size)

    def render_clips(self, clips: np.ndarray, size: int = 32) -> np.ndarray:
        """Likewise, of numbers of the clip variable."""
        cells = self.cells_of(clips)
        frames = tiles.draw(cells.reshape(-1, LATTICE**2), size).reshape(*cells.shape[:2], size, size, 3)
        return frames.repeat(self.frames_per_step, axis=1)

    def grade(self, pixels: np.ndarray) -> np.ndarray:
        """(n,) int64 clips that uint8 (n, T, size, size, 3) frames show, legal or not; -1 where they are not a clip of one ball.

        Every frame of a step must show the same.

        Raises:
            ValueError: another shape, type, size or number of frames.
        """
        expected = self.num_steps * self.frames_per_step
        if pixels.ndim != 5 or pixels.shape[1] != expected:
            raise ValueError(f"clips are of shape {pixels.shape}; expected (n, {expected}, size, size, 3)")
        cells = tiles.read(pixels.reshape(-1, *pixels.shape[2:])).reshape(*pixels.shape[:2], -1)  # (n, T, 16)
        one = (cells != tiles.EMPTY).sum(axis=2) == 1
        places = (cells != tiles.EMPTY).argmax(axis=2)
        kinds = cells.max(axis=2)
        balls = tiles.kind_of(np.full(len(COLOURS), _BALL), np.arange(len(COLOURS)), np.ones(len(COLOURS), np.int64))
        good = one.all(axis=1) & (kinds == kinds[:, :1]).all(axis=1) & np.isin(kinds[:, 0], balls)
        steps = places.reshape(len(pixels), self.num_steps, self.frames_per_step)
        good &= (steps == steps[:, :, :1]).all(axis=(1, 2))
        colour = tiles.attributes_of(np.where(good, kinds[:, 0], balls[0]))[1]
        return np.where(good, path_number(colour, steps[:, :, 0]), -1)


class MovingWorld(BallWorld):
    """The world of a rolling ball.

    Args:
        num_steps: pictures of a clip, 3 or more.
        frames_per_step: see `BallWorld`.

    Attributes:
        places: (N, num_steps) int64 cells of each hidden state.

    Raises:
        ValueError: fewer than 3 or more than 8 steps, or no frame a step.
    """

    def __init__(self, num_steps: int = 4, frames_per_step: int = 1) -> None:
        if not 3 <= num_steps <= 8:
            raise ValueError(f"num_steps is {num_steps}; this world has clips of 3 to 8 steps")
        if frames_per_step < 1:
            raise ValueError(f"frames_per_step is {frames_per_step}; expected 1 or more")
        self.num_steps, self.frames_per_step = num_steps, frames_per_step
        num_turns = num_steps - 2
        colour, direction, start, turns = (
            some.ravel() for some in np.indices((len(COLOURS), len(DIRECTIONS), LATTICE**2, 2**num_turns))
        )
        turned = turns_of(turns, num_turns)
        self.places = roll(start, direction, turned)
        clip = path_number(colour, self.places)
        super().__init__(
            f"moving-{num_steps}",
            {"colour": colour, "direction": direction, "start": start},
            turn_odds(turned) / (len(COLOURS) * len(DIRECTIONS) * LATTICE**2),
            RULES,
            {"colour": COLOURS, "direction": DIRECTIONS},
            variables={"clip": clip, "beginning": path_number(colour, self.places[:, :2])},
            tasks=TASKS,
            held_out=(colour == direction),
            attributes={"clip": {"start": by_clip(clip, start), "turns": by_clip(clip, visible_turns(self.places))}},
        )


def path_number(colour: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) one number for a colour (n,) and cells (n, steps)."""
    number = colour
    for step in range(places.shape[1]):
        number = number * LATTICE**2 + places[:, step]
    return number


def turns_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """(n, count) 0 or 1: the bits of numbers (n,), whether the ball turns before each later move."""
    return (numbers[:, None] >> np.arange(count)) & 1


def turn_odds(turned: np.ndarray) -> np.ndarray:
    """(n,) odds of turns (n, count)."""
    return np.prod(np.where(turned == 1, TURN_ODDS, 1 - TURN_ODDS), axis=1)


def roll(start: np.ndarray, direction: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Cells that balls visit.

    Args:
        start: (n,) first cells.
        direction: (n,) first headings.
        turned: (n, k) whether the ball turns left before its second, third, ... move.

    Returns:
        (n, k + 2) int64.
    """
    y, x = np.divmod(start, LATTICE)
    places, heading = [start], direction
    for move in range(turned.shape[1] + 1):
        if move:  # the first move goes where the caption says, so that its words can be checked in the clip
            heading = (heading + turned[:, move - 1]) % 4
        ahead = np.stack([y, x], 1) + STEPS[heading]
        # Reversed rather than stopped: a ball that stood still would make clips of one place that no heading can be read from.
        outside = ((ahead < 0) | (ahead >= LATTICE)).any(axis=1)
        heading = np.where(outside, (heading + 2) % 4, heading)
        y, x = y + STEPS[heading, 0], x + STEPS[heading, 1]
        places.append(y * LATTICE + x)
    return np.stack(places, axis=1)


def visible_turns(places: np.ndarray) -> np.ndarray:
    """(n,) one number for how each later move differs from the one before: 0 straight, 1 left, 2 back, 3 right, base 4."""
    y, x = np.divmod(places, LATTICE)
    dy, dx = np.diff(y, axis=1), np.diff(x, axis=1)
    # Differences, not headings: after a bounce several hidden headings show the same cells, and only these can be tested.
    heading = np.where(dy == -1, 0, np.where(dx == -1, 1, np.where(dy == 1, 2, 3)))
    number = np.zeros(len(places), np.int64)
    for change in (np.diff(heading, axis=1) % 4).T:
        number = number * 4 + change
    return number


def is_path(places: np.ndarray) -> np.ndarray:
    """(n,) bool: every move goes to a neighbouring cell."""
    y, x = np.divmod(places, LATTICE)
    return (np.abs(np.diff(y, axis=1)) + np.abs(np.diff(x, axis=1)) == 1).all(axis=1)


def by_clip(clip: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of hidden states by number of the clip that shows them, -1 for numbers that no state shows."""
    table = np.full(clip.max() + 1, -1)
    table[clip] = values
    return table
