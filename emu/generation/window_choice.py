"""`window="auto"`: which window is fastest is found out on the work itself, since the codes are the same with any."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Literal

import torch

Window = int | Literal["auto"]
CANDIDATES = (1, 16)
"""Windows that are tried, in this order. How many tokens a pass settles depends on model, grid and guidance, and what a wider pass costs on
the machine: on a CPU about as much as its tokens one by one, on a GPU often little more than a pass of one."""


def check_window(window: object) -> Window:
    """`window`, a whole number of at least 1 or "auto".

    Raises:
        ValueError: it is neither.
    """
    if window == "auto":
        return "auto"
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f'window is {window!r}; expected a whole number of at least 1, or "auto"')
    return window


class FastestWindow:
    """Times each candidate once for every kind of work, and then keeps the fastest: from then on never slower than a window of 1.

    Args:
        device: of the model. On a CPU the process's CPU time is compared, which does not depend on what else the machine does.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._seconds: dict[Hashable, dict[int, float]] = {}

    def clock(self) -> float:
        """Seconds, from any point in time."""
        return time.process_time() if self._on_cpu else time.perf_counter()

    def pick(self, kind: Hashable) -> int:
        """The window for work of this kind: one that was not timed yet, else the fastest."""
        timed = self._seconds.get(kind, {})
        untimed = [window for window in CANDIDATES if window not in timed]
        return untimed[0] if untimed else min(CANDIDATES, key=lambda window: timed[window])

    def note(self, kind: Hashable, window: int, seconds: float | None) -> None:
        """Remember how long work of this kind took; the shortest time counts, and None does not."""
        if seconds is None:
            return
        timed = self._seconds.setdefault(kind, {})
        timed[window] = min(seconds, timed.get(window, seconds))
