"""The rows that are running: one pass for all of them, whatever each of them draws."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from emu.generation.cohort import Cohort, Passed, SingleSteps
from emu.generation.device_passes import Passes
from emu.generation.lane import Lane
from emu.generation.linear import LinearBackend
from emu.generation.prefill import Beginning, Prefill, worth_sharing
from emu.generation.speculation import Speculator
from emu.model import EmuForCausalLM, StaticCache
from emu.model.attention import EVEN_SLOTS


class Slots:
    """Lanes that advance together.

    Args:
        model: in eval mode while it runs.
        by_row: compute attention and prompts row by row, so that no lane depends on the others to the last bit.

    Attributes:
        linear: how the weights are multiplied; set before the first pass.
        lanes: those that run.
        cache: one row for each guidance row of each lane.
    """

    linear: LinearBackend

    def __init__(self, model: EmuForCausalLM, *, by_row: bool) -> None:
        self.model, self.by_row = model, by_row
        self.lanes: list[Lane] = []
        self.cache = StaticCache(model.config, 0, 0, dtype=model.dtype, device=model.device)
        self._passes = Passes(model, self.cache, by_row=by_row)
        self._cohorts: dict[Hashable, Cohort] = {}

    @property
    def rows(self) -> int:
        """Rows of all lanes together."""
        return self.cache.rows

    def prefill(self, lanes: Sequence[Lane]) -> Prefill:
        """Begin to compute the prompts of lanes, with what running rows share with them."""
        prompts = [prompt for lane in lanes for prompt in lane.prompts]
        known = [self._beginning(prompt) for prompt in prompts]
        return Prefill(self.model, self.linear, prompts, by_row=self.by_row, beginnings=known)

    def _beginning(self, prompt: Tensor) -> Beginning | None:
        best: Beginning | None = None
        for lane in self.lanes:
            for side, (row, other) in enumerate(zip(lane.rows, lane.prompts, strict=True)):
                if torch.equal(prompt, other):
                    return Beginning(self.cache, row, len(prompt), lane.prompt_hidden[side])
                shared = worth_sharing(_common_length(prompt, other), by_row=self.by_row)
                if shared > (0 if best is None else best.length):
                    best = Beginning(self.cache, row, shared)
        return best

    def join(self, lanes: Sequence[Lane], prefill: Prefill) -> None:
        """Add lanes whose prompts are computed, and draw their first tokens."""
        first = self.rows
        needed = [
            self.cache.begins[row] + len(prompt) + lane.room
            for lane in self.lanes
            for row, prompt in zip(lane.rows, lane.prompts, strict=True)
        ]
        # Aligned rows have equal room, and end where the longest of them ends.
        needed += [lane.longest + lane.room for lane in lanes]
        # Whole cache lines, so that `attend_by_row` reads rows where they are.
        self.cache.reserve(first + sum(len(lane.prompts) for lane in lanes), -(-max(needed) // EVEN_SLOTS) * EVEN_SLOTS)
        # Blocks that begin and end together write to one slot each time, which costs less than a slot for each row; rows that are read
        # where they are begin on cache lines, all at slot 0.
        alike = (
            not (self.lanes or self.by_row) and len({(len(lane.ids) - lane.given, lane.window) for lane in lanes}) == 1
        )
        self.cache.extend(prefill.rows(), aligned=alike)
        hidden = prefill.hidden()
        passed = Passed(hidden[:, None], self.linear, first)
        for lane in lanes:
            lane.rows = list(range(first, first + len(lane.prompts)))
            lane.prompt_hidden = hidden[first - passed.first :][: len(lane.prompts)]
            first += len(lane.prompts)
        self.lanes += lanes
        kinds: dict[Hashable, list[Lane]] = {}
        for lane in lanes:
            kinds.setdefault(_kind(lane), []).append(lane)
        for kind, some in kinds.items():
            cohort = self._cohorts.get(kind)
            if cohort is None:
                cohort = self._cohorts[kind] = _cohort_for(some[0], self.model.device)
            begun = len(cohort.lanes)
            cohort.join(some)
            cohort.take(passed, begun)

    def advance(self) -> None:
        """Run one pass, and draw what follows from it."""
        cohorts = list(self._cohorts.values())
        feeds = [cohort.feed() for cohort in cohorts]
        ids = torch.zeros(self.rows, max(feed.shape[1] for feed in feeds), dtype=torch.int64, device=self.model.device)
        counts = [0] * self.rows
        for cohort, feed in zip(cohorts, feeds, strict=True):
            guidance = len(cohort.lanes[0].rows)
            rows = [lane.rows[side] for side in range(guidance) for lane in cohort.lanes]
            ids[torch.tensor(rows, device=ids.device), : feed.shape[1]] = feed.repeat(guidance, 1)
            for lane in cohort.lanes:
                for row in lane.rows:
                    counts[row] = lane.fed
        self.cache.expect(counts)
        hidden = self._passes.run(ids, self.linear)
        passed = Passed(hidden, self.linear)
        for cohort in cohorts:
            cohort.take(passed)
        self._forget_guesses()

    def _forget_guesses(self) -> None:
        """Keys and values of wrong guesses must not be attended to; the next pass writes their slots again."""
        guessing = [lane for lane in self.lanes if lane.window > 1]
        if guessing:
            ends = list(self.cache.ends)
            for lane in guessing:
                for row, prompt in zip(lane.rows, lane.prompts, strict=True):
                    ends[row] = self.cache.begins[row] + len(prompt) + lane.place - lane.given - 1
            self.cache.end_at(ends)

    def states(self) -> Iterator[tuple[Lane, Cohort, int]]:
        """Each lane with its cohort and its number there."""
        for cohort in self._cohorts.values():
            for number, lane in enumerate(cohort.lanes):
                yield lane, cohort, number

    def release(self, lanes: Sequence[Lane]) -> None:
        """Give the rows of some lanes away; rows at the end take their places."""
        gone = {row for lane in lanes for row in lane.rows}
        for lane in lanes:
            if lane.broken_at is not None:
                for row in lane.rows:
                    self.cache.clear(row)
        left = self.rows - len(gone)
        movers = [row for row in range(left, self.rows) if row not in gone]
        order = [row if row not in gone else movers.pop() for row in range(left)]
        self.cache.keep(order)
        self.lanes = [lane for lane in self.lanes if lane not in lanes]
        new = {origin: row for row, origin in enumerate(order)}
        for lane in self.lanes:
            lane.rows = [new[row] for row in lane.rows]
        for kind, cohort in list(self._cohorts.items()):
            numbers = [number for number, lane in enumerate(cohort.lanes) if lane not in lanes]
            if not numbers:
                del self._cohorts[kind]
            elif len(numbers) < len(cohort.lanes):
                cohort.keep(numbers)


def _common_length(one: Tensor, other: Tensor) -> int:
    """Tokens with which two prompts begin alike, one of the first left over."""
    size = min(len(one) - 1, len(other))
    different = (one[:size] != other[:size]).nonzero()
    return int(different[0]) if len(different) else size


def _kind(lane: Lane) -> Hashable:
    """Lanes of one kind are drawn together."""
    ranges = tuple(dict.fromkeys(step.ranges for step in lane.steps)) if lane.window > 1 else None
    return lane.window, lane.sampling, len(lane.prompts), ranges


def _cohort_for(lane: Lane, device: torch.device) -> Cohort:
    if lane.window == 1:
        return SingleSteps(device)
    return Speculator(device, lane.window, list(dict.fromkeys(step.ranges for step in lane.steps)))
