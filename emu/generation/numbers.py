"""Numbers that a user gives, checked where they arrive."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


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
