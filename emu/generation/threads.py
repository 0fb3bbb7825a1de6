"""How many threads a piece of work gets: those that it fills, whatever the process may use.

A product of a small model takes less time than it takes to wake a second thread, and OpenMP's threads spin while they wait for the next
one: on a busy machine they take turns with whoever else wants the cores, and every product waits for a turn. So short products run on
the thread that calls, and long ones on as many as their work fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORK_OF_A_THREAD = 1 << 24
"""Multiply-adds of a product that are worth a thread: about 0.3 ms of one. `benchmarks/generation_threads.py` shows what it changes."""


def threads_of(work: int, available: int) -> int:
    """Threads for a piece of work of `work` multiply-adds, from 1 to those that are available."""
    return max(1, min(available, work // WORK_OF_A_THREAD))


@contextmanager
def threads_for(work: int, device: torch.device) -> Iterator[None]:
    """Let torch use only as many threads as a piece of work fills; the caller's number comes back at the end.

    Args:
        work: multiply-adds of its largest product.
        device: where it runs; nothing changes for others than the CPU.
    """
    # torch keeps the number for each thread of Python by itself, from the first time that the thread asks for it: others keep theirs.
    before = torch.get_num_threads()
    chosen = threads_of(work, before) if device.type == "cpu" else before
    if chosen == before:
        yield
        return
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)
