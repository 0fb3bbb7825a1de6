"""What generation refuses or warns of: numbers out of range, lengths beyond the model's positions, logits that are not numbers."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_whole(name: str, value: Any, least: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more")
    return int(value)


def check_number(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> float:
    """`value` as a float, finite and at least 0.

    Args:
        name: of the setting, for messages.
        positive: whether 0 is invalid.
        most: the largest valid number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside its range.
    """
    expected = ("above 0" if positive else "0 or more") + (f", at most {most:g}" if most < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a number {expected}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0) or number > most:
        raise ValueError(f"{name} is {value}; expected a number {expected}")
    return number


def as_out_of_memory(error: Exception) -> Exception:
    """The same error; in place of the RuntimeError of a CPU's allocator a `torch.OutOfMemoryError`, as of a GPU."""
    if type(error) is RuntimeError and "DefaultCPUAllocator" in str(error):
        return torch.OutOfMemoryError(str(error)).with_traceback(error.__traceback__)
    return error


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


class BrokenLogits(FloatingPointError):
    """Logits that hold NaN or infinity.

    Args:
        position: of the token of which they are the logits.
        dtype: of the model.
        sequences: numbers of the sequences in their batch, where that is known.
    """

    def __init__(self, position: int, dtype: torch.dtype, sequences: Sequence[int] = ()) -> None:
        self.position, self.dtype = position, dtype
        where = f" of sequence {', '.join(map(str, sequences[:8]))} of the batch" if sequences else ""
        super().__init__(
            f"the logits of token {position}{where} hold NaN or infinity ({dtype}), so nothing can be drawn; the weights are damaged "
            "(compare their files: Emu.from_pretrained(..., verify=True)) or the numbers too large for the dtype (try float32 or bfloat16)"
        )
