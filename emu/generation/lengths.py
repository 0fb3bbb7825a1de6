"""The length that a model was made for, and warnings that point at the caller."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from torch import Tensor

OURS = ("emu", "torch", "contextlib")
"""Packages whose lines a warning does not point at."""


def warn_caller(message: str) -> None:
    """Warn, at the line outside of this library that asked for it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def beyond_positions(tokens: int, positions: int) -> str:
    """What is wrong with the length of a sequence, in words; empty where nothing is."""
    return f"{tokens} tokens (the model has {positions} positions)" if tokens > positions else ""


def room_for_text(prompts: Sequence[Tensor], positions: int, max_new_tokens: int) -> list[int]:
    """Tokens that may follow each prompt (n,): `max_new_tokens`, or what is left of the model's positions.

    Raises:
        ValueError: nothing is left.
    """
    for prompt in prompts:
        if len(prompt) >= positions:
            raise ValueError(
                f"a prompt has {len(prompt)} tokens and the model {positions} positions, which leaves none to write; shorten it"
            )
    return [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]
