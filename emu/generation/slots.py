"""The rows that are running: one pass for all of them, whatever each of them draws."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from emu.generation.cohort import Cohort, Passed, SingleSteps
from emu.generation.device_passes import Passes
from emu.generation.lane import Lane
from emu.generation.model_runner import ModelRunner
from emu.generation.prefill import PromptRows
from emu.generation.speculation import Speculator
from emu.model import StaticCache
from emu.model.attention import PROMPT_BLOCK


class Slots:
    """Lanes that advance together, those whose prompts are not computed yet among them.

    Args:
        engine: whose model runs, row by row where it is deterministic, so that no lane depends on the others to the last bit.

    Attributes:
        lanes: those that have rows.
        cache: one row for each guidance row of each lane.
    """

    def __init__(self, engine: ModelRunner) -> None:
        self.engine, self.model, self.by_row = engine, engine.model, engine.deterministic
        self.lanes: list[Lane] = []
        self.cache = StaticCache(self.model.config, 0, 0, dtype=self.model.dtype, device=self.model.device)
        self._passes = Passes(self.model, self.cache, by_row=self.by_row)
        self._cohorts: dict[Hashable, Cohort] = {}
        self._prompts = PromptRows(self.cache)
        self._joining: list[list[Lane]] = []

    def admit(self, lanes: Sequence[Lane]) -> None:
        """Add lanes. Their prompts are computed in the passes that follow, and they begin together when they have them all."""
        others = list(self.lanes)
        self.lanes += lanes
        if not others:
            self._linear = self.engine.linear()
        # Blocks that begin and end together write to one slot each time, which costs less than a slot for each row; rows that are read
        # where they are begin on cache lines, all at slot 0.
        alike = not (others or self.by_row) and len({(len(lane.ids) - lane.given, lane.window) for lane in lanes}) == 1
        needed = [
            self.cache.begins[row] + len(prompt) + lane.room
            for lane in others
            for row, prompt in zip(lane.rows, lane.prompts, strict=True)
        ]
        # Aligned rows have equal room, and end where the longest of them ends.
        needed += [lane.longest + lane.room for lane in lanes]
        self._joining.append(list(lanes))
        first, longest = self.cache.rows, max(lane.longest for lane in lanes)
        begins = [longest - len(prompt) if alike else 0 for lane in lanes for prompt in lane.prompts]
        # Whole blocks of prompts and cache lines, so that `attend_by_row` reads rows where they are.
        self.cache.reserve(first + len(begins), -(-max(needed) // PROMPT_BLOCK) * PROMPT_BLOCK)
        self.cache.extend(begins)
        for lane in lanes:
            lane.rows = list(range(first, first + len(lane.prompts)))
            first += len(lane.prompts)
        self._prompts.admit(lanes)

    def advance(self) -> bool:
        """Run one pass, and draw what follows from it.

        Returns:
            Whether anything was drawn; nothing is after a chunk of long prompts alone.
        """
        fed, cohorts = self._prompts.feed(), list(self._cohorts.values())
        if fed and (not cohorts or self._passes.records):
            # A recorded pass takes as many tokens of each row.
            self._run([], fed)
            fed = []
        # Nothing runs where a lane has just been taken back for which others waited that have their prompts.
        if cohorts:
            passed = self._run(cohorts, fed)
            for cohort in cohorts:
                cohort.take(passed)
        ready = [lanes for lanes in self._joining if self._prompts.are_done(lanes)]
        for lanes in ready:
            self._joining.remove(lanes)
            self._begin(lanes)
        self._forget_guesses()
        return bool(cohorts or ready)

    def _run(self, cohorts: Sequence[Cohort], fed: Sequence[tuple[int, Tensor]]) -> Passed:
        """One pass over the next tokens of cohorts and of prompts."""
        feeds = [cohort.feed() for cohort in cohorts]
        width = max([feed.shape[1] for feed in feeds] + [len(ids) for _, ids in fed])
        rows, device = self.cache.rows, self.model.device
        ids = torch.zeros(rows, width, dtype=torch.int64, device=device)
        counts = [0] * rows
        for cohort, feed in zip(cohorts, feeds, strict=True):
            guidance = len(cohort.lanes[0].rows)
            own = [lane.rows[side] for side in range(guidance) for lane in cohort.lanes]
            ids[torch.tensor(own, device=device), : feed.shape[1]] = feed.repeat(guidance, 1)
            for lane in cohort.lanes:
                for row in lane.rows:
                    counts[row] = lane.fed
        for row, part in fed:
            ids[row, : len(part)] = part.to(device)
            counts[row] = len(part)
        self.engine.use_threads(sum(counts))
        self.cache.expect(counts, prompts=[row for row, _ in fed])
        if not fed:
            hidden = self._passes.run(ids, self._linear).flatten(0, 1)
            return Passed(hidden, self._linear, [row * width for row in range(rows)])
        hidden = self.model.forward_tokens(ids, self.cache, self._linear, by_row=self.by_row)
        passed = Passed(hidden, self._linear, [0, *itertools.accumulate(counts)])
        self._prompts.note(fed, hidden, passed.starts)
        return passed

    def _begin(self, lanes: Sequence[Lane]) -> None:
        """Draw the first tokens of lanes that have their prompts."""
        starts = [0] * self.cache.rows
        for place, row in enumerate(row for lane in lanes for row in lane.rows):
            starts[row] = place
        passed = Passed(self._prompts.hidden(lanes), self._linear, starts)
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

    def _forget_guesses(self) -> None:
        """Keys and values of wrong guesses must not be attended to; the next pass writes their slots again."""
        guessing = [lane for lane, _, _ in self.states() if lane.window > 1]
        if guessing:
            ends = list(self.cache.ends)
            for lane in guessing:
                for row, prompt in zip(lane.rows, lane.prompts, strict=True):
                    ends[row] = self.cache.begins[row] + len(prompt) + lane.place - lane.given - 1
            self.cache.end_at(ends)

    def states(self) -> Iterator[tuple[Lane, Cohort, int]]:
        """Each lane that has begun, with its cohort and its number there."""
        for cohort in self._cohorts.values():
            for number, lane in enumerate(cohort.lanes):
                yield lane, cohort, number

    def release(self, lanes: Sequence[Lane]) -> None:
        """Give the rows of some lanes away; rows at the end take their places."""
        gone = {row for lane in lanes for row in lane.rows}
        rows, left = self.cache.rows, self.cache.rows - len(gone)
        movers = [row for row in range(left, rows) if row not in gone]
        order = [row if row not in gone else movers.pop() for row in range(left)]
        # Whether a row holds NaN is looked at late or, of a lane that is taken back, never: none is left to whoever comes next.
        for row in gone.intersection(range(left)):
            self.cache.clear(row)
        self.cache.keep(order)
        self.cache.clear(slice(left, rows))
        self.lanes = [lane for lane in self.lanes if lane not in lanes]
        self._joining = [[lane for lane in some if lane not in lanes] for some in self._joining]
        self._joining = [some for some in self._joining if some]
        self._prompts.release(lanes)
        new = {origin: row for row, origin in enumerate(order)}
        for lane in self.lanes:
            lane.rows = [new[row] for row in lane.rows]
        for kind, cohort in list(self._cohorts.items()):
            numbers = [number for number, lane in enumerate(cohort.lanes) if lane not in lanes]
            if not numbers:
                del self._cohorts[kind]
            elif len(numbers) < len(cohort.lanes):
                cohort.keep(numbers)


def _kind(lane: Lane) -> Hashable:
    """Lanes of one kind are drawn together."""
    ranges = tuple(dict.fromkeys(step.ranges for step in lane.steps)) if lane.window > 1 else None
    return lane.window, lane.sampling, len(lane.prompts), ranges


def _cohort_for(lane: Lane, device: torch.device) -> Cohort:
    if lane.window == 1:
        return SingleSteps(device)
    return Speculator(device, lane.window, list(dict.fromkeys(step.ranges for step in lane.steps)))
