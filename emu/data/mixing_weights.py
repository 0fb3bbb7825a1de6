"""Shares of sources in the tokens of training, which may change at stated steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

FROM_STEP = "from_step"


class Stage(NamedTuple):
    """Weights that hold from a step on.

    Attributes:
        from_step: the first optimizer step.
        weights: share of each source in the tokens, in any unit.
    """

    from_step: int
    weights: Mapping[str, float]


def stages_of(weights: Mapping[str, float] | Sequence[Mapping[str, float]]) -> tuple[Stage, ...]:
    """Weights as a recipe has them, one table or a list of tables with `from_step`, as stages."""
    tables = [weights] if isinstance(weights, Mapping) else weights
    return tuple(
        Stage(int(table.get(FROM_STEP, 0)), {name: float(value) for name, value in table.items() if name != FROM_STEP})
        for table in tables
    )


def weight_problems(weights: Any, sources: Collection[str]) -> list[str]:
    """Everything that keeps sources from being mixed by these weights, one sentence each.

    Args:
        weights: as a recipe has them.
        sources: names of the sources.
    """
    tables = [weights] if isinstance(weights, Mapping) else list(weights)
    if not tables:
        return ["weights is an empty list; expected a table of weights by source, or a list of them with from_step"]
    problems = []
    steps = [table.get(FROM_STEP, 0) for table in tables]
    for number, (table, step) in enumerate(zip(tables, steps, strict=True)):
        where = f"weights[{number}]" if isinstance(weights, Sequence) else "weights"
        if not _is_number(step) or step != int(step) or step < 0:
            problems.append(f"{where} has from_step {step!r}; expected an integer of 0 or more")
        problems += _table_problems(where, {k: v for k, v in table.items() if k != FROM_STEP}, sources)
    if problems:
        return problems
    if steps[0] != 0:
        problems.append(f"weights begin at step {steps[0]:g}; set the first from_step to 0")
    falling = [f"{b:g} after {a:g}" for a, b in zip(steps, steps[1:], strict=False) if b <= a]
    if falling:
        problems.append(f"from_step of weights must rise; it is {', '.join(falling)}")
    return problems


def _table_problems(where: str, table: Mapping[str, Any], sources: Collection[str]) -> list[str]:
    problems = []
    unknown = sorted(set(table) - set(sources))
    if unknown:
        problems.append(f"{where} names the unknown sources {unknown}; there are {sorted(sources)}")
    bad = {name: value for name, value in table.items() if not _is_number(value) or value < 0}
    if bad:
        problems.append(f"{where} has {bad}; expected finite numbers of 0 or more")
    elif not any(table.values()):
        problems.append(f"{where} has no weight above 0; give a positive one to at least one of {sorted(sources)}")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in the ratio of shares that add up to `total` (largest remainders first)."""
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
