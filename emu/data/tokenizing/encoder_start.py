"""How many processes encode, and how they start. Light, so that they load what they need while the command loads the same."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os

SMALL = 1000
"""Records for each further process: starting one takes a second."""
LOADED = "emu.data.tokenizing.encoding_processes"
"""What a process that encodes needs; imported once, and shared by all of them."""


def usual_processes(length: int | None, device: str) -> int:
    """As many processes as there are processors, fewer where the work is little; one for a graphics card."""
    if length is None or device != "cpu":
        return 1
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(count, length // SMALL))


def starting_context() -> multiprocessing.context.BaseContext:
    """How processes start: not as forks of this one, whose threads (of PyTorch, of Arrow) do not survive that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Imported once, and shared by all: a process that encodes takes no time to start and little memory.
    context.set_forkserver_preload([LOADED])
    return context


def begin_loading() -> None:
    """Start the process that the others are forked from, where the system has such; returns at once, while it loads."""
    if starting_context().get_start_method() == "forkserver":
        multiprocessing.forkserver.ensure_running()
