"""Rates and decay of single parameters, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from emu_tokenizers.training.schedules import OptimizerOptions


def split_by_patterns(
    groups: Sequence[Mapping[str, Any]], named: Mapping[str, nn.Parameter], options: OptimizerOptions
) -> list[dict[str, Any]]:
    """Groups of an optimizer, split so that the parameters of each pattern of `options.groups` have their own rate and decay.

    Args:
        groups: tables with "params", "weight_decay" and, where it is not `options.lr`, "lr".
        named: the model's parameters by name.
        options: with the patterns.

    Returns:
        As many groups as before where there are no patterns; what no pattern matches stands before what one does.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    unmatched = pattern_problems(named, options)
    if unmatched:
        raise ValueError("; ".join(unmatched))
    pattern_of = {id(parameter): _first_match(name, options.groups) for name, parameter in named.items()}
    parts = []
    for group in groups:
        for pattern in (None, *options.groups):
            chosen = [parameter for parameter in group["params"] if pattern_of.get(id(parameter)) == pattern]
            part = {**group, "params": chosen}
            if pattern is not None:
                factors = options.groups[pattern]
                part["lr"] = group.get("lr", options.lr) * factors.lr
                part["weight_decay"] = group["weight_decay"] * factors.weight_decay
            parts += [part] if chosen else []
    return parts


def pattern_problems(names: Iterable[str], options: OptimizerOptions) -> list[str]:
    """A sentence for each pattern of `options.groups` that none of the names of parameters matches first."""
    names = list(names)
    used = {_first_match(name, options.groups) for name in names}
    return [
        f"optimizer.groups: no parameter is matched by {pattern!r} and by none before it; names are such as {', '.join(names[:3])}"
        for pattern in options.groups
        if pattern not in used
    ]


def _first_match(name: str, patterns: Iterable[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
