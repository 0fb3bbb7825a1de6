"""Lanes of a running batch whose tokens are drawn with the same settings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emu.generation.lane import Lane
from emu.generation.linear import IdRange, LinearBackend
from emu.generation.sampling import Keys


def knows_at_once(device: torch.device) -> bool:
    """Whether a number can be looked at without waiting for the device."""
    return device.type == "cpu"


@dataclass(frozen=True)
class Passed:
    """What a pass left behind.

    Attributes:
        hidden: (T, hidden) of all tokens, those of a row one after the other.
        linear: how the head is multiplied.
        starts: place of the first token of each row of the cache.
    """

    hidden: Tensor
    linear: LinearBackend
    starts: Sequence[int]

    def logits(self, ranges: tuple[IdRange, ...], lanes: Sequence[Lane], places: Sequence[int]) -> Tensor:
        """(G, B, K) of the token after a place of the pass for each lane, over the ids of these ranges."""
        guidance = len(lanes[0].rows)
        at = [
            self.starts[lane.rows[side]] + place
            for side in range(guidance)
            for lane, place in zip(lanes, places, strict=True)
        ]
        hidden = self.hidden[torch.tensor(at, device=self.hidden.device)]
        return self.linear.head(ranges)(hidden).unflatten(0, (guidance, -1))

    def window_logits(self, ranges: tuple[IdRange, ...], lanes: Sequence[Lane], window: int) -> Tensor:
        """(G, B, m, K) of the token after each of the first m places of the pass."""
        guidance = len(lanes[0].rows)
        starts = torch.tensor([self.starts[lane.rows[side]] for side in range(guidance) for lane in lanes])
        hidden = self.hidden[(starts[:, None] + torch.arange(window)).to(self.hidden.device)]
        return self.linear.head(ranges)(hidden).unflatten(0, (guidance, -1))


class Cohort(ABC):
    """Lanes that are drawn together. B lanes, n ids in the longest; a lane's ids stand at the beginning of its row.

    Args:
        device: of the model.
        padding: places after the ids of each lane.

    Attributes:
        lanes: in the order of the tensors' rows.
        ids: (B, n) what is final, then what is forced or guessed.
        is_suspect: whether logits are known to have held NaN or infinity, which a CPU knows at once.
        broken: (B,) length of each sequence of which the next logits held NaN or infinity first, -1 where all were numbers.
    """

    def __init__(self, device: torch.device, padding: int = 0) -> None:
        self.device, self.padding = device, padding
        self.lanes: list[Lane] = []
        self.ids = torch.empty(0, 0, dtype=torch.int64, device=device)
        self.broken = torch.empty(0, dtype=torch.int64, device=device)
        self.keys = Keys(self.broken, self.broken)
        self.is_suspect = False

    def join(self, lanes: Sequence[Lane]) -> None:
        """Add lanes after those that are there."""
        self.lanes += lanes
        self.ids = self._stacked(self.ids, [lane.ids for lane in lanes])
        noise = torch.tensor([[lane.seed, lane.stream] for lane in lanes], dtype=torch.int64, device=self.device)
        self.keys = Keys(torch.cat([self.keys.seed, noise[:, 0]]), torch.cat([self.keys.stream, noise[:, 1]]))
        self.broken = F.pad(self.broken, (0, len(lanes)), value=-1)

    @abstractmethod
    def take(self, passed: Passed, first: int = 0) -> None:
        """Draw what follows from a pass, for the lanes from number `first` on.

        Args:
            passed: the pass that fed what `feed` gave, or the prompts of lanes that have just joined.
        """

    @abstractmethod
    def feed(self) -> Tensor:
        """(B, m) ids of the next pass; sets how many of them each lane has."""

    def _stacked(self, whole: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """A tensor (B, n) with some rows (k,) more, as wide as the widest and the padding."""
        width = max(whole.shape[1], *(len(row) + self.padding for row in rows))
        new = torch.stack([F.pad(row, (0, width - len(row))) for row in rows]).to(self.device)
        return torch.cat([F.pad(whole, (0, width - whole.shape[1])), new])

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with some of the lanes alone."""
        rows = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self.is_suspect = False
        self.lanes = [self.lanes[number] for number in numbers]
        self.ids, self.broken = self.ids[rows], self.broken[rows]
        self.keys = Keys(self.keys.seed[rows], self.keys.stream[rows])

    def watched(self, logits: Tensor, numbers: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The same logits (G, B, ...) of some lanes, of the token after so many; NaN and infinity are noted."""
        # One sum instead of a test of each number: NaN and infinity go through it. Half precision would overflow.
        total = logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32))
        if knows_at_once(self.device):
            if math.isfinite(float(total)):
                return logits
            self.is_suspect = True
        sums = logits.sum([0, *range(2, logits.ndim)], dtype=total.dtype)
        at, length = torch.tensor([numbers, lengths], device=self.device)
        self.broken[at] = torch.where((self.broken[at] < 0) & ~sums.isfinite(), length, self.broken[at])
        return logits

    def look(self, number: int) -> bool:
        """Whether all logits of a lane were numbers so far; waits for a GPU."""
        broken = int(self.broken[number])
        self.lanes[number].broken_at = None if broken < 0 else broken
        return broken < 0


class SingleSteps(Cohort):
    """Lanes that draw one token a pass, and feed it with what is forced after it."""

    def take(self, passed: Passed, first: int = 0) -> None:
        """Draw the next token of each lane."""
        groups: dict[tuple[IdRange, ...], list[int]] = {}
        for number, lane in enumerate(self.lanes[first:], start=first):
            groups.setdefault(lane.steps[lane.done].ranges, []).append(number)
        for ranges, numbers in groups.items():
            self._draw(passed, ranges, numbers)

    def _draw(self, passed: Passed, ranges: tuple[IdRange, ...], numbers: list[int]) -> None:
        lanes = [self.lanes[number] for number in numbers]
        slots = [lane.steps[lane.done].slot for lane in lanes]
        logits = passed.logits(ranges, lanes, [lane.fed - 1 for lane in lanes])
        lengths = [lane.longest - lane.given + slot for lane, slot in zip(lanes, slots, strict=True)]
        logits = self.watched(logits, numbers, lengths)
        at, slot, position = torch.tensor(
            [numbers, slots, [lane.start + slot for lane, slot in zip(lanes, slots, strict=True)]], device=self.device
        )
        keys = Keys(self.keys.seed[at], self.keys.stream[at])
        ids = ids_of(keys.draw(logits, lanes[0].sampling, position), ranges)
        self.ids[at, slot] = ids
        # What follows a token of text decides what the next pass feeds: those alone are waited for.
        drawn = ids.tolist() if any(lane.after is not None for lane in lanes) else [0] * len(lanes)
        for number, lane, place, index in zip(numbers, lanes, slots, drawn, strict=True):
            forced = _forced_after(lane, index)
            if forced is None:
                lane.is_stopped = True
                continue
            if forced:
                self.ids[number, place + 1 : place + 1 + len(forced)] = torch.tensor(forced, device=self.device)
            lane.done += 1

    def feed(self) -> Tensor:
        """(B, m) ids of the next pass; sets how many of them each lane has."""
        begins = list[int]()
        for lane in self.lanes:
            step = lane.steps[lane.done - 1]
            lane.fed = step.stop - step.slot
            begins.append(step.slot)
        most = max(lane.fed for lane in self.lanes)
        begin = torch.tensor(begins, device=self.device)[:, None]
        places = begin + torch.arange(most, device=self.device) if most > 1 else begin
        return self.ids.gather(1, places.clamp_max(self.ids.shape[1] - 1))


def _forced_after(lane: Lane, index: int) -> Sequence[int] | None:
    """What is forced after a token; None where it ends the sequence, as an error of whoever says so does."""
    try:
        return () if lane.after is None else lane.after(index)
    except Exception as error:
        lane.error = error
        return None


def ids_of(offsets: Tensor, ranges: tuple[IdRange, ...]) -> Tensor:
    """Ids of offsets into joined ranges."""
    found, passed = offsets + ranges[0][0], 0
    for (_, count), (following, _) in zip(ranges, ranges[1:], strict=False):
        passed += count
        found = torch.where(offsets >= passed, offsets - passed + following, found)
    return found
