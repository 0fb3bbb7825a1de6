"""The loop that every kind of generation runs: logits over a slice, guidance, a draw, the next pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emu.generation.grid_schedule import GridSchedule
from emu.generation.linear import IdRange
from emu.generation.sampling import Keys, Sampling
from emu.generation.session import Session

OnSampled = Callable[[int, Tensor], None]
"""Called with the number of sampled tokens so far and the ids (B, n) of the block."""


def decode_block(
    session: Session,
    schedule: GridSchedule,
    sampling: Sampling,
    keys: Keys,
    on_sampled: OnSampled | None = None,
    start: int = 0,
) -> Tensor:
    """Sample the free positions of a schedule; each pass feeds a token with what is forced after it.

    Args:
        session: prefilled with the prompts and the schedule's given positions.
        start: position of the block's first token in the noise, for blocks after other generated tokens.

    Returns:
        (B, n) int64: the ids of the block.
    """
    ids = schedule.ids.to(session.hidden.device).repeat(session.guidance_rows, 1)  # (G * B, n)
    by_guidance_row = ids.unflatten(0, (session.guidance_rows, -1))
    last = len(schedule.steps) - 1
    for number, step in enumerate(schedule.steps):
        drawn = keys.draw(session.logits(step.ranges), sampling, start + step.slot)
        # Guidance rows of a sequence differ in their prompts alone: the token that was drawn is written to each of them.
        by_guidance_row[:, :, step.slot] = drawn + step.ranges[0][0]
        if on_sampled is not None:
            on_sampled(number + 1, by_guidance_row[0])
        if number < last:
            session.advance(ids[:, step.slot : step.stop])
    return by_guidance_row[0]


def decode_open(
    session: Session, ranges: tuple[IdRange, ...], stop_id: int, limits: Sequence[int], sampling: Sampling, keys: Keys
) -> tuple[Tensor, Tensor]:
    """Sample until every sequence has written the stop token, or has as many tokens as its limit.

    Returns:
        (B, largest limit) int64 ids, and the number of tokens of each sequence, (B,), without the stop token.
    """
    device = session.hidden.device
    choices = torch.cat([torch.arange(first, first + count, device=device) for first, count in ranges])
    sequences, limit = session.rows // session.guidance_rows, max(limits)
    ids = torch.full((sequences, limit), stop_id, dtype=torch.int64, device=device)
    ends_at = torch.tensor(limits, device=device)
    lengths = ends_at.clone()
    running = torch.ones(sequences, dtype=torch.bool, device=device)
    for place in range(limit):
        # Ended sequences keep their rows: without them the cache would be copied, and the last bits of the others' products change.
        drawn = choices[keys.draw(session.logits(ranges), sampling, place)]
        ids[:, place] = torch.where(running, drawn, stop_id)
        ended = running & (drawn == stop_id)
        lengths.masked_fill_(ended, place)
        running &= ~ended & (ends_at > place + 1)
        if place == limit - 1 or not running.any():
            break
        session.advance(ids[:, place : place + 1].repeat(session.guidance_rows, 1))
    return ids, lengths
