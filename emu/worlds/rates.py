"""Clips of a ball at three rates: captions name the pictures a second, and how far the ball gets from one to the next follows.

The ball moves four cells a second, turns and bounces as in the world of a rolling ball. At 2 pictures a second it makes two moves between
pictures, at 4 one, at 8 one in every two pictures, the first at once or one picture later, either as likely. All clips have four pictures.
"""

from __future__ import annotations

import numpy as np

from emu.worlds.caption_table import Rule
from emu.worlds.moving import DIRECTIONS, BallWorld, by_clip, path_number, roll, turn_odds, turns_of
from emu.worlds.tiles import COLOURS, LATTICE
from emu.worlds.world import Task

RATES = (2, 4, 8)
"""Pictures a second."""
NUM_STEPS = 4
SHOWN_MOVES = ((0, 2, 4, 6), (0, 1, 2, 3), (0, 1, 1, 2), (0, 0, 1, 1))
"""Moves that the ball has made at each picture: at 2, at 4, and at 8 pictures a second with the first move at once and later."""
RATE_OF_PACE, PACE_ODDS = np.array([0, 1, 2, 2]), np.array([1 / 3, 1 / 3, 1 / 6, 1 / 6])

TASKS = (
    Task("text-to-video", "caption", "clip"),
    Task("continuation", "beginning", "clip"),
    Task("video-to-text", "clip", "caption"),
)
RULES = (
    Rule("full", 0.6, "a {colour} ball rolling {direction} at {rate} fps"),
    Rule("direction", 0.2, "a ball rolling {direction} at {rate} fps"),
    Rule("colour", 0.2, "a {colour} ball at {rate} fps"),
)
_RADIX = len(COLOURS) * LATTICE ** (2 * NUM_STEPS)


class RateWorld(BallWorld):
    """The world of a ball at three rates, for tokenizers that encode frames one by one; kinds of prompts: the rates."""

    num_steps = NUM_STEPS
    rates = RATES
    prompt_kinds = tuple(f"{rate} fps" for rate in RATES)

    def __init__(self) -> None:
        parts = [_scenes(pace) for pace in range(len(SHOWN_MOVES))]
        rate, colour, direction, start = np.concatenate([scenes for scenes, _, _ in parts], axis=1)
        places = np.concatenate([shown for _, shown, _ in parts])
        clip = rate * _RADIX + path_number(colour, places)
        begun = rate * _RADIX + path_number(colour, places[:, :2])
        super().__init__(
            "rates",
            {"rate": rate, "colour": colour, "direction": direction, "start": start},
            np.concatenate([odds for _, _, odds in parts]) / (len(COLOURS) * len(DIRECTIONS) * LATTICE**2),
            RULES,
            {"colour": COLOURS, "direction": DIRECTIONS, "rate": [str(rate) for rate in RATES]},
            variables={"clip": clip, "beginning": begun},
            tasks=TASKS,
            held_out=(colour == direction),
            attributes={
                "clip": {"start": by_clip(clip, start), "pace": by_clip(clip, _pace(places)), "ending": self._ending}
            },
        )

        self._rate_of_caption = np.zeros(len(self.captions), np.int64)
        self._rate_of_caption[self.captions.ids] = rate[:, None]

    def rates_of(self, variable: str, numbers: np.ndarray) -> np.ndarray:
        """See `BallWorld`; captions say it too."""
        rate = self._rate_of_caption[numbers] if variable == "caption" else np.asarray(numbers) // _RADIX
        return np.array(RATES)[rate]

    def kinds_of(self, task: str, given: np.ndarray) -> np.ndarray:
        """See `World`."""
        return np.searchsorted(RATES, self.rates_of(self.task(task).given, given))

    def at_rate(self, clips: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """See `BallWorld`: the same frames are another clip at another rate."""
        return np.where(clips >= 0, clips + np.searchsorted(RATES, rates) * _RADIX, -1)

    def _ending(self, clips: np.ndarray, beginnings: np.ndarray) -> np.ndarray:
        """Rank among the clips that begin so."""
        return self.table("clip", "beginning").rank(clips, beginnings)


def _scenes(pace: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((rate, colour, direction, start), n), cells (n, 4) and odds (n,) but for a constant, of all clips of one row of `SHOWN_MOVES`."""
    shown = SHOWN_MOVES[pace]
    num_turns = shown[-1] - 1
    axes = (len(COLOURS), len(DIRECTIONS), LATTICE**2, 2**num_turns)
    colour, direction, start, turns = np.indices(axes).reshape(len(axes), -1)
    turned = turns_of(turns, num_turns)
    places = roll(start, direction, turned)[:, shown]
    rate = np.full_like(colour, RATE_OF_PACE[pace])
    return np.stack([rate, colour, direction, start]), places, PACE_ODDS[pace] * turn_odds(turned)


def _pace(places: np.ndarray) -> np.ndarray:
    """(n,) cells between one picture and the next, up to 2 each, as one number to the base 3."""
    y, x = np.divmod(places, LATTICE)
    far = np.abs(np.diff(y, axis=1)) + np.abs(np.diff(x, axis=1))
    return far @ 3 ** np.arange(far.shape[1])
