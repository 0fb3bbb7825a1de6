"""Who may come in: as many sequences as there are slots and places to wait, and nobody once the server is closing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from emu.serving.api_errors import ApiError, bad_value


class Admission:
    """Counts the sequences that were let in and are not done.

    Args:
        slots: sequences that are drawn at a time.
        queue: sequences that may wait beside them.

    Attributes:
        taken: sequences inside.
        is_closing: whether nobody comes in any more.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue
        self.taken = 0
        self.is_closing = False
        self._seconds = 1.0  # of a sequence, lately

    @property
    def waiting(self) -> int:
        """Sequences that have no slot."""
        return max(0, self.taken - self.slots)

    def check(self, count: int = 1) -> None:
        """Raise ApiError where N more sequences find no place: 503 when the server closes, 429 when it is full."""
        places = self.slots + self.queue
        if self.is_closing:
            raise ApiError(
                503, "the server is closing; try another one", "shutting_down", headers={"Retry-After": "10"}
            )
        if count > places:
            raise bad_value(f"n is {count}, and the server takes {places} at most; ask for fewer at a time", "n")
        if self.taken + count > places:
            wait = max(1, min(600, math.ceil(self._seconds * (self.waiting + count) / self.slots)))
            told = f"{self.taken} requests are running or waiting, as many as the server takes; try again in {wait} s"
            raise ApiError(429, told, "queue_full", headers={"Retry-After": str(wait)})

    @contextmanager
    def taking(self, count: int = 1) -> Iterator[None]:
        """Hold N places.

        Raises:
            ApiError: see `check`.
        """
        self.check(count)
        self.taken += count
        begun, beside = time.monotonic(), max(1.0, self.taken / self.slots)
        try:
            yield
        finally:
            self.taken -= count
            self._seconds += 0.2 * ((time.monotonic() - begun) / beside - self._seconds)
