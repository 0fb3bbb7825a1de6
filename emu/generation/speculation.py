"""Several tokens in one pass, with the outcome of one token at a time.

The noise of every position is fixed by its key, so the token that ancestral sampling writes there is a function of what stands before it.
A pass over a window of guesses evaluates that function at every place of the window at once; the first place whose guess was wrong is
corrected with certainty, and everything before it is final. The other values are the guesses of the next pass: with the noise frozen they
rarely change once their surroundings are settled. This is fixed-point iteration with reparametrised noise (arXiv 2002.09928), which
couples the drafts of successive passes as arXiv 2510.24211 does for images. Nothing is accepted that a single step would not have drawn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from emu.generation.cohort import Cohort, Passed
from emu.generation.lane import Lane
from emu.generation.linear import IdRange
from emu.generation.sampling import Keys
from emu.layouts import FREE


class Speculator(Cohort):
    """Lanes of blocks that are decoded with a window of m places.

    Args:
        device: of the model.
        window: tokens fed in one pass, m.
        ranges: the ids that tokens may be, of each codebook.

    Attributes:
        ids: (B, n + m) what is final, then guesses.
        length: (B,) ids of each lane.
        done: (B,) places of each lane that are final.
        reached: (B,) places of each lane that hold a guess at least.
    """

    def __init__(self, device: torch.device, window: int, ranges: Sequence[tuple[IdRange, ...]]) -> None:
        # m forced places after the end, so that no window needs an end of its own
        super().__init__(device, padding=window)
        self.ranges = ranges
        self.ahead = torch.arange(window, device=device)
        self.forced, self.first = self.ids, self.ids
        self.length, self.done, self.reached, self.start = (self.broken,) * 4

    def join(self, lanes: Sequence[Lane]) -> None:
        """Add lanes after those that are there."""
        super().join(lanes)
        templates = [lane.template for lane in lanes if lane.template is not None]
        self.forced = self._stacked(self.forced, [template.forced for template in templates])
        self.first = self._stacked(self.first, [template.first for template in templates])
        numbers = [[len(lane.ids), lane.given, lane.given, lane.start] for lane in lanes]
        new = torch.tensor(numbers, dtype=torch.int64, device=self.device).T
        old = torch.stack([self.length, self.done, self.reached, self.start])
        self.length, self.done, self.reached, self.start = torch.cat([old, new], 1)

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with some of the lanes alone."""
        super().keep(numbers)
        rows = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self.forced, self.first = self.forced[rows], self.first[rows]
        self.length, self.done, self.reached, self.start = (
            part[rows] for part in (self.length, self.done, self.reached, self.start)
        )

    def take(self, passed: Passed, first: int = 0) -> None:
        """Settle what the pass has evaluated, and guess what follows."""
        if self.lanes[first].done == 0:
            self._begin(passed, first)
        else:
            places = self.done[:, None] + self.ahead  # (B, m)
            self._settle(places, self._evaluate(passed, places))
        for lane, place in zip(self.lanes[first:], self.done[first:].tolist(), strict=True):
            lane.place, lane.done = place, bisect_left(lane.steps, place, key=lambda step: step.slot)
        self._guess(passed, first)

    def _begin(self, passed: Passed, first: int) -> None:
        """Draw the first place, which follows from the prompt alone."""
        places = self.done[first:, None]
        found = self._drawn_last(passed, first, places, self.ids[first:].gather(1, places))
        self.ids[first:].scatter_(1, places, found)
        self.done[first:] += 1
        self.reached[first:] += 1

    def _drawn_last(self, passed: Passed, first: int, places: Tensor, found: Tensor) -> Tensor:
        """(lanes, k): what the distribution after the last place of the pass draws at the free places, and `found` at others."""
        lanes = self.lanes[first:]
        for ranges in self.ranges:
            logits = self._watched(passed.logits(ranges, lanes, [lane.fed - 1 for lane in lanes]), first)
            found = self._choose(ranges, first, places, logits.repeat_interleave(places.shape[1], 1), found)
        return found

    def _watched(self, logits: Tensor, first: int) -> Tensor:
        lanes = self.lanes[first:]
        numbers = range(first, first + len(lanes))
        return self.watched(logits, numbers, [lane.longest - lane.given + lane.place for lane in lanes])

    def _guess(self, passed: Passed, first: int) -> None:
        """Fill the places that no pass has reached with what their own noise draws from the last distribution at hand."""
        done, reached, ids = self.done[first:], self.reached[first:], self.ids[first:]
        places = done[:, None] + self.ahead
        new = int((places[:, -1] + 1 - reached).max())  # columns at the end that are new to some lane
        if new <= 0:
            return
        late = places[:, -new:]
        guess = self._drawn_last(passed, first, late, self.forced[first:].gather(1, late))
        # The columns are new to the lane that went furthest; others have better guesses in some of them, from their last pass.
        ids.scatter_(1, late, torch.where(late >= reached[:, None], guess, ids.gather(1, late)))
        self.reached[first:] = torch.maximum(reached, places[:, -1] + 1)

    def _choose(self, ranges: tuple[IdRange, ...], first: int, places: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        """Draw at the free places (B, k) of one id range from logits (G, B * k, K); the others keep their ids (B, k)."""
        begin = ranges[0][0]
        seed, stream = (key[first:].repeat_interleave(places.shape[1]) for key in (self.keys.seed, self.keys.stream))
        positions = (places + self.start[first:, None]).flatten()
        drawn = Keys(seed, stream).draw(logits, self.lanes[0].sampling, positions).view_as(places) + begin
        is_drawn = (self.forced[first:].gather(1, places) == FREE) & (self.first[first:].gather(1, places) == begin)
        return torch.where(is_drawn, drawn, ids)

    def _evaluate(self, passed: Passed, places: Tensor) -> Tensor:
        """(B, m): what a single step would draw at each place, given the guesses before it."""
        found = self.forced.gather(1, places)
        for ranges in self.ranges:
            logits = self._watched(passed.window_logits(ranges, self.lanes, places.shape[1]), 0)
            found = self._choose(ranges, 0, places, logits.flatten(1, 2), found)
        return found

    def _settle(self, places: Tensor, found: Tensor) -> None:
        """All up to the first wrong guess is final, with that guess corrected; the rest is guessed for the next pass.

        The guess at the last place was not fed, so it is corrected at most.
        """
        right = (self.ids.gather(1, places) == found)[:, :-1]
        # `found[i]` is exact when all guesses before place i were right: true of the first place, whose past is final, and of each place
        # up to the first wrong guess. So the correction of that guess is final too, hence + 1, and every pass settles one token at least.
        final = self.done + right.long().cumprod(1).sum(1) + 1
        # All of `found` is written, wrong guesses after the first included: with frozen noise it is the best guess for the next pass.
        self.ids.scatter_(1, places, found)
        self.done = final.clamp_max(self.length)

    def feed(self) -> Tensor:
        """(B, m) ids of the next pass; sets how many of them each lane has."""
        # What is drawn at a place follows from the token before it, so the window that is fed begins one place earlier.
        for lane in self.lanes:
            lane.fed = len(self.ahead)
        return self.ids.gather(1, self.done[:, None] - 1 + self.ahead)
