"""Functions that a recipe may call: `${mul:${model.config.hidden_size},4}`, `${oc.env:DATA,shards}`.

Arithmetic takes numbers and nothing else; nothing is evaluated. `oc.env` is OmegaConf's own, and whoever resolves a value can ask whether
it was used, so that what comes out of the environment (which may be secret) is not written down.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

Number = int | float

_environment_read: ContextVar[list[str] | None] = ContextVar("environment_read", default=None)


def register_resolvers() -> None:
    """Make the functions known to OmegaConf; a second call changes nothing."""
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver  # before OmegaConf 2.4
    for name, function in ARITHMETIC.items():
        if not OmegaConf.has_resolver(name):
            register(name, checked(name, function))
    register("oc.env", environment, replace=True)


@contextmanager
def noting_environment() -> Iterator[list[str]]:
    """Collect the names of the environment variables that are read inside."""
    names: list[str] = []
    token = _environment_read.set(names)
    try:
        yield names
    finally:
        _environment_read.reset(token)


def environment(name: str, *default: Any) -> Any:
    """The value of an environment variable, or the default; see OmegaConf's `oc.env`."""
    names = _environment_read.get()
    if names is not None:
        names.append(name)
    return oc.env(name, *default)


def checked(name: str, function: Callable[..., Number]) -> Callable[..., Number]:
    """A function of numbers that refuses everything else.

    Raises:
        ValueError: an argument is not a finite number, there are too few or too many, or the result is not defined.
    """

    def call(*given: Any) -> Number:
        values = [_number(name, value) for value in given]
        if len(values) < 2 or (name in PAIRS and len(values) > 2):
            raise ValueError(f"{name} takes {'2' if name in PAIRS else '2 or more'} numbers, got {len(values)}")
        try:
            return function(*values)
        except ZeroDivisionError as error:
            raise ValueError(f"{name} of {list(values)} divides by zero") from error

    return call


def _number(name: str, value: Any) -> Number:
    """A finite number, also one from the environment, whose values are all strings."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                value = kind(value)
                break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} takes numbers, got {value!r}")
    return value


def _sum(*values: Number) -> Number:
    return sum(values)


PAIRS: dict[str, Callable[..., Number]] = {"sub": operator.sub, "div": operator.truediv, "floordiv": operator.floordiv}
ARITHMETIC: dict[str, Callable[..., Number]] = {
    "add": _sum,
    "mul": lambda *values: math.prod(values),
    "min": min,
    "max": max,
    **PAIRS,
}
"""By name: `add`, `mul`, `min` and `max` of two or more numbers, `sub`, `div` and `floordiv` of two."""
