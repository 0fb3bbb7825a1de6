"""How full the rows of a mixture are, and which length would fill them better."""

from __future__ import annotations

from collections.abc import Sequence

from emu.data.mixture import Mixture
from emu.packing import plan_rows

STEPS_LOOKED_AT = 8
ENOUGH_USE = 0.8
"""Share of the positions that hold documents, below which a hint is due."""
LONGEST = 4
"""Rows up to this many times as long as the longest document are tried."""
STEP = 16
"""Row lengths are tried in multiples of this."""


def row_length_hint(mixture: Mixture, row_length: int) -> str | None:
    """A sentence that names a better row length, where the first steps fill less than `ENOUGH_USE` of their rows.

    Returns:
        None where rows are full enough, where sources do not know lengths without building documents, or where no length is better.
    """
    steps = []
    for step in range(STEPS_LOOKED_AT):
        lengths = [mixture.length(reference) for reference in mixture.references(step)]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            return None
        steps.append(known)
    use = row_use(steps, row_length)
    longest = max(map(max, steps))
    candidates = range(-(-longest // STEP) * STEP, LONGEST * longest + STEP, max(STEP, longest // 16 // STEP * STEP))
    best = max(candidates, key=lambda length: row_use(steps, length))
    if use >= ENOUGH_USE or row_use(steps, best) <= use + 0.05:
        return None
    return (
        f"documents fill {use:.0%} of rows of {row_length} tokens; row_length {best} would be filled to {row_use(steps, best):.0%} "
        "(larger documents_per_step help too)"
    )


def row_use(steps: Sequence[Sequence[int]], row_length: int) -> float:
    """Share of the positions that hold documents when each step's lengths are packed into rows of `row_length`."""
    positions = sum(len(plan_rows(lengths, row_length)) * row_length for lengths in steps)
    return sum(map(sum, steps)) / positions
