"""What whoever submits a request to a running batch holds: its outcome, its errors, and the way to take it back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from torch import Tensor


class RequestTooLarge(ValueError):
    """A request that the memory of its batch can never hold."""


class RequestCancelled(RuntimeError):
    """A request that was taken back before it was done."""


class Ticket:
    """The outcome of one request; every method may be called from any thread."""

    def __init__(self) -> None:
        self._future: Future[Tensor] = Future()
        self._is_cancelled = False

    @property
    def done(self) -> bool:
        """Whether there is an outcome: codes, ids or an error."""
        return self._future.done()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was taken back; the batch notices at its next step."""
        return self._is_cancelled

    def result(self, timeout: float | None = None) -> Tensor:
        """Wait for codes (*grid), with a last axis where there are several codebooks, or for ids of text (n,); int64 on the CPU.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: it is not done in time.
            FloatingPointError: the model's logits hold NaN or infinity.
            RequestCancelled: it was taken back.
            Exception: what a callback of the request raised.
        """
        return self._future.result(timeout)

    def error(self) -> BaseException | None:
        """What went wrong, None where nothing did or it is not done yet."""
        return self._future.exception() if self.done else None

    def cancel(self) -> None:
        """Take the request back: its slot is free at the next step. What is done stays done."""
        self._is_cancelled = True

    def add_done_callback(self, callback: Callable[[Ticket], None]) -> None:
        """Call `callback(ticket)` when there is an outcome, from the thread that steps the batch; at once where there is one."""
        self._future.add_done_callback(lambda _: callback(self))

    def succeed(self, found: Tensor) -> None:
        """Set the outcome; for the batch alone."""
        self._future.set_result(found)

    def fail(self, error: BaseException) -> None:
        """Set the error; for the batch alone. What is done stays done."""
        if not self.done:
            self._future.set_exception(error)
