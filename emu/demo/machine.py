"""What a run costs on this machine, and two settings that make small models cheap on a CPU."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES = 1 << 30
MAX_THREADS = 2


def few_threads() -> None:
    """At most two threads: at the demo's sizes more of them only wait for each other."""
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))


def keep_memory() -> None:
    """Have glibc keep freed memory instead of handing it back and fetching it anew in each step; elsewhere do nothing."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


class Clock:
    """CPU and wall seconds of the parts of a run.

    Attributes:
        parts: seconds by name of the part.
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._start = (time.process_time(), time.perf_counter())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.parts[name] = _seconds(cpu, wall)

    def total(self) -> dict[str, float]:
        """Seconds since the clock was made."""
        return _seconds(*self._start)


def _seconds(cpu: float, wall: float) -> dict[str, float]:
    return {
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }
