"""Requests of one call, all at the same time, and what was done for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emu.generation.batch_requests import BatchRequest
from emu.generation.batcher import Batcher
from emu.generation.generation_stats import GenerationStats
from emu.generation.grid_schedule import OnRow
from emu.generation.limits import BrokenLogits
from emu.generation.model_runner import ModelRunner
from emu.generation.ticket import RequestCancelled, Ticket


def run_together(
    engine: ModelRunner, requests: Sequence[BatchRequest], on_row: OnRow | None = None
) -> tuple[list[Tensor], GenerationStats | None]:
    """Outcomes of requests in their order; nothing more is done for the others as soon as one fails.

    Args:
        on_row: of blocks of one grid, called with (row number, codes of that row of every block) when all have it.

    Returns:
        The outcomes, and what was done; None where there was nothing to do.

    Raises:
        TypeError, ValueError: a request does not fit; before any work.
        FloatingPointError: the model's logits hold NaN or infinity; the message names the requests by their numbers.
    """
    begun, batcher = time.perf_counter(), Batcher(engine, slots=max(1, len(requests)))
    rows = None if on_row is None else SharedRows(on_row, len(requests))
    tickets = [
        batcher.submit(request, on_row=None if rows is None else rows.of(number))
        for number, request in enumerate(requests)
    ]

    def end_all(ticket: Ticket) -> None:
        if ticket.error() is not None:
            for other in tickets:
                other.cancel()

    for ticket in tickets:
        ticket.add_done_callback(end_all)
    batcher.run()
    errors = [ticket.error() for ticket in tickets]
    broken = {number: error for number, error in enumerate(errors) if isinstance(error, BrokenLogits)}
    if broken:
        first = next(iter(broken.values()))
        raise BrokenLogits(first.position, first.dtype, list(broken))
    for error in errors:
        if error is not None and not isinstance(error, RequestCancelled):
            raise error
    found, seconds = [ticket.result() for ticket in tickets], time.perf_counter() - begun
    if not batcher.passes:
        return found, None
    each = batcher.tokens / len(requests) / batcher.passes
    return found, GenerationStats(len(requests), batcher.tokens, batcher.passes, each, seconds)


class SharedRows:
    """Collects a line of each of several blocks, and hands it on when all have it.

    Args:
        on_row: called with (row number, codes of that row of every block).
        blocks: their number.
    """

    def __init__(self, on_row: OnRow, blocks: int) -> None:
        self._on_row, self._blocks = on_row, blocks
        self._rows: dict[int, dict[int, Tensor]] = {}

    def of(self, number: int) -> Callable[[int, Tensor], None]:
        """What the block of a number is to call with (row number, codes of that row)."""

        def on_row(row: int, codes: Tensor) -> None:
            parts = self._rows.setdefault(row, {})
            parts[number] = codes
            if len(parts) == self._blocks:
                del self._rows[row]
                self._on_row(row, torch.stack([parts[number] for number in range(self._blocks)]))

        return on_row
