"""PromptRows, computed in the rows that go on with them, a chunk at a time and beside whatever runs; what several begin with, once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.lane import Lane
from emu.model import StaticCache

PREFILL_CHUNK = 1024
"""Tokens of a prompt that a pass takes at most: its mask has as many entries as queries times keys."""
WORTH_COPYING = 16
"""Tokens of a common beginning from which copying its keys and values is less than computing them."""


def next_chunk(done: int, length: int) -> int:
    """Tokens that the next pass takes of a prompt, of which so many are computed; chunks end at multiples of their size."""
    return min(PREFILL_CHUNK - done % PREFILL_CHUNK, length - done)


@dataclass(eq=False)
class PromptRow:
    """A prompt, and the row of the cache that holds it.

    Attributes:
        lane, side: whose prompt it is, and which of its rows.
        source: the prompt whose beginning it takes over, until it has it.
        shared: tokens of that beginning.
        hidden: (hidden,) of its last token, once it is computed.
    """

    lane: Lane
    side: int
    source: PromptRow | None = None
    shared: int = 0
    hidden: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The prompt, (n,)."""
        return self.lane.prompts[self.side]

    @property
    def row(self) -> int:
        """Its number in the cache."""
        return self.lane.rows[self.side]


class PromptRows:
    """The prompts of all lanes that have rows, computed and not.

    Args:
        cache: that holds them.
    """

    def __init__(self, cache: StaticCache) -> None:
        self._cache = cache
        self._rows: dict[Lane, list[PromptRow]] = {}
        self._open: list[PromptRow] = []

    def admit(self, lanes: Sequence[Lane]) -> None:
        """Begin with the prompts of lanes whose rows are there and hold nothing."""
        known = _Beginnings(row for rows in self._rows.values() for row in rows)
        for lane in lanes:
            self._rows[lane] = [PromptRow(lane, side) for side in range(len(lane.prompts))]
            for row in self._rows[lane]:
                row.source, row.shared = known.find(row.ids)
                known.add(row)
            self._open += self._rows[lane]

    def release(self, lanes: Collection[Lane]) -> None:
        """Forget the prompts of some lanes; what others meant to take over of them is computed after all."""
        for lane in lanes:
            del self._rows[lane]
        self._open = [row for row in self._open if row.lane in self._rows]
        for row in self._open:
            if row.source is not None and row.source.lane not in self._rows:
                row.source = None

    def feed(self) -> list[tuple[int, Tensor]]:
        """Rows of which the next pass takes ids, and these (k,); others wait for a beginning that is being computed."""
        found = list[tuple[int, Tensor]]()
        for row in self._open:
            self._take_over(row)
        self._open = [row for row in self._open if row.hidden is None]
        for row in self._open:
            if row.source is None:
                done = self._done(row)
                found.append((row.row, row.ids[done : done + next_chunk(done, len(row.ids))]))
        return found

    def _done(self, row: PromptRow) -> int:
        return self._cache.ends[row.row] - self._cache.begins[row.row]

    def _take_over(self, row: PromptRow) -> None:
        source = row.source
        if source is None:
            return
        is_whole = row.shared == len(row.ids)
        if self._done(source) < row.shared or (is_whole and source.hidden is None):
            return
        row.source = None
        # What is masked is multiplied by zero, which NaN survives: a token that gives NaN spoils those before it in its row too, and a
        # prompt that does not hold that token must not be given them.
        if self._cache.is_finite(source.row, row.shared):
            self._cache.share(source.row, row.row, row.shared)
            row.hidden = source.hidden if is_whole else None

    def note(self, fed: Sequence[tuple[int, Tensor]], hidden: Tensor, starts: Sequence[int]) -> None:
        """Keep the hidden states of prompts that are complete now.

        Args:
            fed: what `feed` gave.
            hidden: (T, hidden) of a pass.
            starts: place of the first token of each row among them.
        """
        last = {row: starts[row] + len(ids) - 1 for row, ids in fed}
        for row in self._open:
            if row.row in last and self._done(row) == len(row.ids):
                row.hidden = hidden[last[row.row]].clone()
        for row in self._open:
            self._take_over(row)

    def are_done(self, lanes: Sequence[Lane]) -> bool:
        """Whether the prompts of some lanes are computed."""
        return all(row.hidden is not None for lane in lanes for row in self._rows[lane])

    def hidden(self, lanes: Sequence[Lane]) -> Tensor:
        """(rows of the lanes, hidden) of the last token of each prompt, which are computed."""
        return torch.stack([row.hidden for lane in lanes for row in self._rows[lane] if row.hidden is not None])


class _Beginnings:
    """Finds prompts that begin alike, in time by their length: a tree of blocks of `WORTH_COPYING` tokens.

    Args:
        rows: to begin with.
    """

    def __init__(self, rows: Iterator[PromptRow]) -> None:
        self._nodes: dict[tuple[int, bytes], int] = {}
        self._owners: list[PromptRow] = []
        self._whole: dict[bytes, PromptRow] = {}
        for row in rows:
            self.add(row)

    def add(self, row: PromptRow) -> None:
        """Add a prompt, whose row computes what no other one has before it."""
        node = -1
        for block in _blocks(row.ids):
            if (node, block) not in self._nodes:
                self._nodes[node, block] = len(self._owners)
                self._owners.append(row)
            node = self._nodes[node, block]
        self._whole.setdefault(row.ids.numpy().tobytes(), row)

    def find(self, ids: Tensor) -> tuple[PromptRow | None, int]:
        """The prompt that shares most with another one (n,), and how many tokens; one is left over but of equal prompts."""
        same = self._whole.get(ids.numpy().tobytes())
        if same is not None:
            return same, len(ids)
        node = -1
        for block in _blocks(ids[:-1]):
            if (node, block) not in self._nodes:
                break
            node = self._nodes[node, block]
        if node < 0:
            return None, 0
        return self._owners[node], _common_length(ids, self._owners[node].ids)


def _blocks(ids: Tensor) -> Iterator[bytes]:
    for start in range(0, len(ids) - WORTH_COPYING + 1, WORTH_COPYING):
        yield ids[start : start + WORTH_COPYING].numpy().tobytes()


def _common_length(one: Tensor, other: Tensor) -> int:
    """Tokens with which two prompts begin alike, one of the first left over."""
    size = min(len(one) - 1, len(other))
    different = (one[:size] != other[:size]).nonzero()
    return int(different[0]) if len(different) else size
