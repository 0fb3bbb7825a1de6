"""What a command says besides its results: warnings of the library, one line each on stderr."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGER = "emu"
"""The one logger of this library; modules log to it and to its children, and it is silent until somebody adds a handler."""


@contextmanager
def messages(command: str) -> Iterator[None]:
    """Show what is logged from WARNING on, and Python's warnings to users, as `emu fit: ...` on stderr.

    The settings of logging and of warnings are afterwards as they were.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{command}: %(message)s"))
    logger, usual = logging.getLogger(LOGGER), warnings.formatwarning

    def format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        told_to_users = issubclass(category, (UserWarning, RuntimeWarning))
        return f"{command}: {message}\n" if told_to_users else usual(message, category, *place, **line)

    logger.addHandler(handler)
    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        logger.removeHandler(handler)
        warnings.formatwarning = usual
