"""Several tokens in one pass, with the outcome of one token at a time.

The noise of every position is fixed by its key, so the token that ancestral sampling writes there is a function of what stands before it.
A pass over a window of guesses evaluates that function at every place of the window at once; the first place whose guess was wrong is
corrected with certainty, and everything before it is final. The other values are the guesses of the next pass: with the noise frozen they
rarely change once their surroundings are settled. This is fixed-point iteration with reparametrised noise (arXiv 2002.09928), which
couples the drafts of successive passes as arXiv 2510.24211 does for images. Nothing is accepted that a single step would not have drawn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from emu.generation.decoding import OnSampled
from emu.generation.grid_schedule import GridSchedule
from emu.generation.linear import IdRange
from emu.generation.sampling import Keys, Sampling
from emu.generation.session import Session
from emu.layouts import FREE, BlockTemplate


class Speculator:
    """Decodes a block with a window. B sequences, n positions in the block, m places in the window.

    Args:
        session: prefilled with all that is known except the last token of each row.
        last_known: (rows,) that token.
        template, schedule: of the block.
        window: tokens fed in one pass, m.
        sampling, keys: as for one token at a time.
    """

    def __init__(
        self,
        session: Session,
        last_known: Tensor,
        template: BlockTemplate,
        schedule: GridSchedule,
        window: int,
        sampling: Sampling,
        keys: Keys,
    ) -> None:
        device = session.hidden.device
        self.session, self.last_known, self.sampling, self.keys = session, last_known.to(device), sampling, keys
        self.length = len(template)
        # m forced places after the end, so that no window needs an end of its own
        self.ids = F.pad(schedule.ids, (0, window)).to(device)  # (B, n + m): what is final, then guesses
        self.forced = F.pad(template.forced, (0, window)).to(device)
        self.first = F.pad(template.first, (0, window)).to(device)
        self.free = template.free.nonzero()[:, 0].to(device)
        self.order = (self.forced == FREE).cumsum(0) - 1  # number of the code at a free place
        self.ranges = list(dict.fromkeys(step.ranges for step in schedule.steps))
        self.given, self.stop = schedule.given, schedule.steps[-1].slot + 1
        self.done = torch.full(
            (len(schedule.ids),), schedule.given, device=device
        )  # places of each sequence that are final
        self.reached = self.done.clone()  # places of each sequence that hold a guess at least
        self.ahead = torch.arange(window, device=device)

    def run(self, on_sampled: OnSampled | None = None) -> Tensor:
        """(B, n) ids of the block."""
        begin, final = self.session.length, self.given
        while final < self.stop:
            places = self.done[:, None] + self.ahead  # (B, m)
            self._guess(places)
            found = self._evaluate(places)
            self._settle(places, found)
            # Keys and values of wrong guesses must not be attended to; the next pass writes their slots again.
            ends = begin + self.done - self.given
            self.session.cache.truncate(ends.repeat(self.session.guidance_rows))
            before, final = final, int(self.done.min())
            if on_sampled is not None:
                self._report(on_sampled, before, final)
        return self.ids[:, : self.length]

    def _guess(self, places: Tensor) -> None:
        """Fill the places that no pass has reached with what their own noise draws from the last distribution at hand."""
        new = int((places[:, -1] + 1 - self.reached).max())  # columns at the end that are new to some sequence
        if new <= 0:
            return
        late = places[:, -new:]
        guess = self.forced[late]
        for ranges in self.ranges:
            logits = self.session.logits(ranges).repeat_interleave(new, 1)  # (G, B * new, K)
            guess = self._choose(ranges, late, logits, guess)
        # The columns are new to the sequence that went furthest; others have better guesses in some of them, from their last pass.
        kept = self.ids.gather(1, late)
        self.ids.scatter_(1, late, torch.where(late >= self.reached[:, None], guess, kept))
        self.reached = torch.maximum(self.reached, places[:, -1] + 1)

    def _choose(self, ranges: tuple[IdRange, ...], places: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        """Draw at the free places (B, k) of one id range from logits (G, B * k, K); the others keep their ids (B, k)."""
        first = ranges[0][0]
        seed, stream = (key.repeat_interleave(places.shape[1]) for key in (self.keys.seed, self.keys.stream))
        drawn = Keys(seed, stream).draw(logits, self.sampling, places.flatten()).view_as(places) + first
        return torch.where((self.forced[places] == FREE) & (self.first[places] == first), drawn, ids)

    def _evaluate(self, places: Tensor) -> Tensor:
        """(B, m): what a single step would draw at each place, given the guesses before it."""
        # What is drawn at a place follows from the token before it, so the window that is fed begins one place earlier.
        fed = self.ids.gather(1, (places - 1).clamp_min(0)).repeat(self.session.guidance_rows, 1)
        if self.session.passes == 1:
            fed[:, 0] = self.last_known  # lies before the block, or is given, and differs between guidance rows
        self.session.advance(fed)
        found = self.forced[places]
        for ranges in self.ranges:
            found = self._choose(ranges, places, self.session.window_logits(ranges).flatten(1, 2), found)
        return found

    def _settle(self, places: Tensor, found: Tensor) -> None:
        """All up to the first wrong guess is final, with that guess corrected; the rest is guessed for the next pass.

        The guess at the last place was not fed, so it is corrected at most.
        """
        right = (self.ids.gather(1, places) == found)[:, :-1]
        # `found[i]` is exact when all guesses before place i were right: true of the first place, whose past is final, and of each place
        # up to the first wrong guess. So the correction of that guess is final too, hence + 1, and every pass settles one token at least.
        final = self.done + right.long().cumprod(1).sum(1) + 1
        # A finished sequence still runs in the batch, and its window lies beyond its end; what is found there is not written.
        running = self.done < self.stop
        # All of `found` is written, wrong guesses after the first included: with frozen noise it is the best guess for the next pass.
        self.ids.scatter_(1, places, torch.where(running[:, None], found, self.ids.gather(1, places)))
        self.done = torch.where(running, final.clamp_max(self.length), self.done)

    def _report(self, on_sampled: OnSampled, before: int, after: int) -> None:
        known = int((self.free < self.given).sum())
        for place in self.free[(self.free >= before) & (self.free < after)].tolist():
            on_sampled(int(self.order[place]) + 1 - known, self.ids)
