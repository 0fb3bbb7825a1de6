"""Clips several times as long as those of training, made in parts: does the ball go on as its world says?

The next cell of a rolling ball depends on its last two alone (`emu.worlds.moving`): they show its heading. So a part that begins with the
last two frames of codes can be as good as any, and what is drawn beyond the trained length has odds that are known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from emu.documents import TokenDocument
from emu.evaluation.measures import Measure
from emu.evaluation.models import document_bits
from emu.evaluation.statistics import ChiSquare, Interval, chi_square_groups, holm, mean, proportion, samples_needed
from emu.model import EmuForCausalLM
from emu.pipeline import Emu
from emu.pipeline.requests import GenerationDefaults
from emu.randomness import key_of, uniforms
from emu.trained import UNKNOWN
from emu.worlds import HELD_OUT, Draws, MovingWorld, tiles
from emu.worlds.moving import (
    DIRECTIONS,
    PICTURES_PER_SECOND,
    STEPS,
    TURN_ODDS,
    path_number,
    roll,
    turn_odds,
)
from emu.worlds.scene_documents import BEGINNING, WorldDocuments
from emu.worlds.tiles import COLOURS, LATTICE

ODDS = np.array([1 - TURN_ODDS, TURN_ODDS])
"""Of straight on and of a turn to the left, wherever the ball is."""
RULE = "colour"
"""The kind of captions that is true of every part: it does not say where the ball starts to go."""
SEEDS = 3


@dataclass(frozen=True)
class LongClips:
    """What was found.

    Attributes:
        length: times the trained length.
        within, beyond: excess over the true bits of a frame, in the trained length and after it.
        moves: tests of the moves after the trained length against their odds, one a seed.
        adjusted: their p-values by Holm.
        legal: share of those moves that the world makes at all.
        identity: share of clips whose last frame shows the ball of the caption, and nothing else.
    """

    length: int
    within: Interval
    beyond: Interval
    moves: tuple[ChiSquare, ...]
    adjusted: tuple[float, ...]
    legal: Interval
    identity: Interval

    def measures(self) -> dict[str, Measure]:
        """Shares and bits by name."""
        named = {"legal": self.legal, "identity": self.identity, "within": self.within, "beyond": self.beyond}
        return {f"{self.length}x/{name}": Measure(found) for name, found in named.items()}

    def figures(self) -> dict[str, float]:
        """p-values by name."""
        return {f"{self.length}x/p/{seed}": p for seed, p in enumerate(self.adjusted)}

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure_length(
    model: EmuForCausalLM, documents: WorldDocuments, length: int, clips: int, samples: int, seed: int = 0
) -> LongClips:
    """Draw long clips and score true ones.

    Args:
        model: trained on the world's clips from captions.
        documents: of the world of a rolling ball.
        length: times the trained length, 2 or more.
        clips: true ones that are scored.
        samples: clips that are drawn for each of `SEEDS` seeds.
        seed: of the captions, the true clips and the drawings.

    Raises:
        ValueError: the length is below 2.
    """
    if length < 2:
        raise ValueError(f"length is {length}; expected 2 or more times the trained length")
    world = documents.world
    assert isinstance(world, MovingWorld)
    steps, moves, legal, same = length * world.num_steps, [], [], []
    for number in range(seed, seed + SEEDS):
        captions = world.draw(number, samples, HELD_OUT, rules=[RULE])
        cells = drawn_cells(model, documents, captions, steps, number)
        colour = world.columns["colour"][captions.rows]
        places = places_of(cells, colour)
        found, possible = moves_beyond(places, world.num_steps)
        moves.append(moves_test(found))
        legal.append(possible)
        same.append(places[:, -1] >= 0)
    return LongClips(
        length,
        excess_within(model, documents, clips, seed),
        excess_beyond(model, documents, clips, steps, seed),
        tuple(moves),
        tuple(holm([test.p_value for test in moves])),
        proportion(np.concatenate(legal)),
        proportion(np.concatenate(same)),
    )


def drawn_cells(model: EmuForCausalLM, documents: WorldDocuments, captions: Draws, steps: int, seed: int) -> np.ndarray:
    """(n, steps, 16) int64 tiles of clips that the model draws from captions in parts."""
    world = documents.world
    assert isinstance(world, MovingWorld)
    each = world.frames_per_step
    defaults = GenerationDefaults(size=(documents.size, documents.size), fps=PICTURES_PER_SECOND, top_k=0)
    emu = Emu(model, documents.tokenizer, defaults, trained=replace(UNKNOWN, frames=(world.num_steps * each,)))
    drawn = emu.generate_videos(
        captions.captions,
        frames=steps * each,
        overlap=BEGINNING * each,
        guidance_scale=1.0,
        seed=[seed * 1_000_003 + number for number in range(len(captions))],
        batch_size=128,
    )
    frames = np.stack([np.stack([np.asarray(frame) for frame in clip.frames[::each]]) for clip in drawn])
    return tiles.read(frames.reshape(-1, *frames.shape[2:])).reshape(*frames.shape[:2], -1)


def places_of(cells: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(n, steps) int64 cell of the ball of a colour (n,) in tiles (n, steps, 16); -1 where anything else is shown."""
    shown = cells != tiles.EMPTY
    ball = tiles.kind_of(np.zeros_like(colour), colour, np.ones_like(colour))
    right = (shown.sum(axis=2) == 1) & (cells.max(axis=2) == ball[:, None])
    return np.where(right, shown.argmax(axis=2), -1)


def moves_beyond(places: np.ndarray, trained: int) -> tuple[np.ndarray, np.ndarray]:
    """Moves after the trained length, and which of them the world makes.

    Args:
        places: (n, steps) cells, -1 for none.
        trained: steps of the trained length.

    Returns:
        (m, 2) int64, where the ball comes from (cell and heading as one number) and whether it turned, of the moves that the world makes;
        and for all of them (n * (steps - trained),) bool whether it is one. Where no heading can be seen it is none.
    """
    two = np.stack([places[:, trained - 2 : -2], places[:, trained - 1 : -1], places[:, trained:]], 2).reshape(-1, 3)
    heading = heading_of(two[:, 0], two[:, 1])
    choices = np.stack([next_cell(two[:, 0], heading, turned) for turned in (0, 1)], 1)  # (m, 2)
    taken = (choices == two[:, 2:]) & (heading >= 0)[:, None]
    possible = taken.any(axis=1)
    before = two[:, 1] * len(DIRECTIONS) + heading
    return np.stack([before, taken.argmax(axis=1)], 1)[possible], possible


def heading_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) direction of moves between cells (n,), -1 where they are no neighbours or there is no ball."""
    moved = np.stack(np.divmod(second, LATTICE), 1) - np.stack(np.divmod(first, LATTICE), 1)
    same = (moved[:, None] == STEPS).all(axis=2) & (first >= 0)[:, None] & (second >= 0)[:, None]
    return np.where(same.any(axis=1), same.argmax(axis=1), -1)


def next_cell(first: np.ndarray, heading: np.ndarray, turned: int) -> np.ndarray:
    """(n,) where balls get that moved on from cells (n,) in directions (n,)."""
    return roll(first, heading, np.full((len(first), 1), turned))[:, 2]


def moves_test(moves: np.ndarray) -> ChiSquare:
    """Chi-square of moves by where the ball comes from, p = 0 where there are too few for any test.

    States that it is in too rarely count together, since all have the same odds.
    """
    counts = np.zeros((LATTICE**2 * len(DIRECTIONS), len(ODDS)))
    np.add.at(counts, tuple(moves.T), 1)
    rare = counts.sum(axis=1) < samples_needed(ODDS)
    groups = [group for group in (*counts[~rare], counts[rare].sum(axis=0)) if group.sum() >= samples_needed(ODDS)]
    if not groups:
        return ChiSquare(
            0.0, 0, 0.0, len(moves)
        )  # who makes next to none of the world's moves does not follow their odds
    return chi_square_groups([(group, ODDS) for group in groups])


def excess_within(model: EmuForCausalLM, documents: WorldDocuments, n: int, seed: int) -> Interval:
    """Bits over the true ones of a frame of clips of the trained length."""
    world, task = documents.world, "text-to-video"
    assert isinstance(world, MovingWorld)
    draws = world.draw(seed, n, HELD_OUT, rules=[RULE])
    bits = document_bits(model, documents.documents(task, draws)) - world.exact_bits(task, draws)
    return mean(bits / world.num_steps)


def excess_beyond(model: EmuForCausalLM, documents: WorldDocuments, n: int, steps: int, seed: int) -> Interval:
    """Likewise of the frames after those, in parts that begin with the last two frames of true clips of `steps` steps."""
    world = documents.world
    assert isinstance(world, MovingWorld)
    noise = uniforms(key_of("long clips", seed), 0, n, 3 + steps)
    colour, heading, start = (
        (noise[:, axis] * count).astype(np.int64)
        for axis, count in enumerate((len(COLOURS), len(DIRECTIONS), LATTICE**2))
    )
    turned = (noise[:, 3 : steps + 1] < TURN_ODDS).astype(np.int64)  # before each move but the first
    places = roll(start, heading, turned)
    drawn = world.num_steps - BEGINNING
    found = np.zeros(n)
    for first in range(drawn, steps - world.num_steps + 1, drawn):
        window = slice(first, first + world.num_steps)
        asked = continued(documents, colour, places[:, window])
        # The move to a step is turned by the entry two before it.
        free = turned[:, first + BEGINNING - 2 : first + world.num_steps - 2]
        found += document_bits(model, asked) + np.log2(turn_odds(free))
    return mean(found / (steps - world.num_steps))


def continued(documents: WorldDocuments, colour: np.ndarray, places: np.ndarray) -> list[TokenDocument]:
    """Captions of colours (n,) and clips of cells (n, trained steps), whose first two frames weigh nothing."""
    world = documents.world
    assert isinstance(world, MovingWorld)
    clips, rows = np.unique(world.variables["clip"], return_index=True)
    rows = rows[np.searchsorted(clips, path_number(colour, places))]
    option = int(np.flatnonzero([world.captions.rules[r].name == RULE for r in world.captions.rule_of_option])[0])
    draws = Draws(world, rows, np.full(len(rows), option), HELD_OUT)
    given = documents.codes("clip", world.variables["clip"][rows[:1]])[0, :BEGINNING].numel()
    made = documents.documents("text-to-video", draws)
    return [TokenDocument(some.ids, some.weights * (some.weights.cumsum(0) > given)) for some in made]
