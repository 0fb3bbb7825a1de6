"""How work is stopped: Ctrl-C and SIGTERM, one way for all commands.

A command that is stopped keeps what it has finished and ends with 130 (Ctrl-C) or 143 (SIGTERM), as a shell counts signals. By default a
signal ends the work at once. Work that has something to save notes it first (`StopRequest`) and stops where it can; Ctrl-C a second time
does not wait for that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask for an end."""


class Stopped(KeyboardInterrupt):
    """The work was stopped by a signal.

    Args:
        number: of the signal.
        told: what was kept and how to go on, for the user.

    Attributes:
        code: exit code of the process.
    """

    def __init__(self, number: int, told: str = "") -> None:
        super().__init__(told)
        self.number = number
        self.code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    """Exit code of a command that ended with this."""
    return error.code if isinstance(error, Stopped) else 128 + signal.SIGINT


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by an exception: what is half-written is cleared away."""
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Stopped(number)

    with handled({signal.SIGTERM: stop}):
        yield


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM; the work looks at `number` where it can stop.

    Args:
        told: what is said when a signal arrives, e.g. "saving, then stopping".

    Attributes:
        number: of the signal that asked for the end, 0 while none has.
    """

    def __init__(self, told: str) -> None:
        self.told = told
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            Stopped: Ctrl-C a second time.
        """
        if self.number and number == signal.SIGINT:
            raise Stopped(number)
        if not self.number:
            # not print: a signal may arrive while the stream is being written to
            os.write(2, f"\n{self.told} (Ctrl-C once more stops at once)\n".encode())
        self.number = self.number or number


@contextmanager
def handled(handlers: dict[int, Any]) -> Iterator[None]:
    """Handle signals in another way while the block runs; outside the main thread, which alone may, nothing changes.

    A signal that the process was started to ignore, as `nohup` does, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in handlers}
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def say(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)
