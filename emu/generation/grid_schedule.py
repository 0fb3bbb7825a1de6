"""What is generated in a block, pass by pass, decided before the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from emu.generation.linear import IdRange
from emu.layouts import BlockTemplate


@dataclass(frozen=True)
class Step:
    """One sampled token and the pass that feeds it.

    Attributes:
        slot: its position in the block.
        stop: end of the positions fed in the pass: the token itself and what the grammar forces after it.
        ranges: the ids it may be.
    """

    slot: int
    stop: int
    ranges: tuple[IdRange, ...]


@dataclass(frozen=True)
class OpenSteps(Sequence[Step]):
    """The steps of text: each draws from the same ids and feeds itself.

    Attributes:
        limit: their number, unless the text ends before.
        ranges: the ids that a token may be.
    """

    limit: int
    ranges: tuple[IdRange, ...]

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, number: Any) -> Any:
        """The step of this number."""
        return Step(number, number + 1, self.ranges)


OnRow = Callable[[int, Tensor], None]
"""Called with the number of a finished line along the grid's fastest axis and its codes (B, line, ...)."""


@dataclass(frozen=True)
class GridSchedule:
    """The passes of a block.

    Attributes:
        ids: (B, n) int64; forced and known tokens in place, 0 where a token will be sampled.
        given: number of positions that are known from the start; they belong to the prefill.
        steps: the sampled positions in order.
    """

    ids: Tensor
    given: int
    steps: tuple[Step, ...]


def schedule_grid(template: BlockTemplate, known: Tensor) -> GridSchedule:
    """The schedule of a block whose first codes (B, k) are known."""
    free = template.free.nonzero()[:, 0]
    ids = template.forced.clamp_min(0).repeat(len(known), 1)
    # Known codes are the first ones of the slowest axis, so that they and what is forced between them are one prefix.
    begun = free[: known.shape[1]]
    ids[:, begun] = known + template.first[begun]
    slots = free[known.shape[1] :].tolist()
    # A forced token needs no pass: it is fed with the sampled one before it, up to the next place that is free.
    stops = [*slots, len(template)][1:]
    firsts, counts = template.first.tolist(), template.count.tolist()
    steps = tuple(Step(slot, stop, ((firsts[slot], counts[slot]),)) for slot, stop in zip(slots, stops, strict=True))
    return GridSchedule(ids, slots[0] if slots else len(template), steps)


def read_codes(template: BlockTemplate, ids: Tensor) -> Tensor:
    """Codes (B, *shape) of blocks (B, n)."""
    free = template.free
    return (ids[:, free] - template.first[free]).unflatten(1, template.shape)
