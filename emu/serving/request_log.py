"""The log: one JSON object a line on stderr, without what users ask for unless that is wanted, and never with a key."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import IO, Any


class RequestLog:
    """Writes lines.

    Args:
        stream: where to; stderr by default.
        prompts: whether prompts stand in them, and what errors say, which may hold a part of one.
    """

    def __init__(self, stream: IO[str] | None = None, *, prompts: bool = False) -> None:
        self._stream, self.prompts = stream, prompts

    def write(self, event: str, **told: Any) -> None:
        """Write a line; what is None is left out."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, **{name: value for name, value in told.items() if value is not None}}
        print(json.dumps(line, default=str), file=self._stream or sys.stderr, flush=True)

    def asked(self, prompt: Any) -> dict[str, Any]:
        """What a line says of a prompt."""
        return {"prompt": prompt} if self.prompts else {}

    def failed(self, error: BaseException, **told: Any) -> None:
        """Write an error that nobody foresaw, with the places in the code where it happened."""
        places = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        said = str(error) if self.prompts else None
        self.write("failed", error=type(error).__name__, message=said, places=places[-12:], **told)


class LineHandler(logging.Handler):
    """Brings what libraries log to the same lines."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if record.exc_info and record.exc_info[1] is not None:
            self._log.failed(record.exc_info[1], logger=record.name)
        else:
            self._log.write("log", logger=record.name, level=record.levelname, message=record.getMessage())
