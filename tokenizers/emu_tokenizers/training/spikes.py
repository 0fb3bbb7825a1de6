"""Telling a spike from a step like those before it, as OLMo does (arXiv 2501.00656, section 3.2): by the last accepted steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

LEAST_SIGMA = 1e-3
"""Of the mean: what is all but constant, as the loss of one batch again and again, is not judged by its rounding."""


@dataclass(frozen=True)
class SpikeOptions:
    """When a step is a spike, whose update is skipped.

    Attributes:
        sigmas: a loss or a gradient norm above the mean of the last accepted steps by more than this many standard deviations is a spike.
        window: how many accepted steps are looked back on; no step is judged before there are so many.
        most: this many spikes among the last `among` steps end the run.
        among: see `most`.
    """

    sigmas: float = 6.0
    window: int = 128
    most: int = 3
    among: int = 10

    def problems(self) -> list[str]:
        """What is wrong with the numbers, one sentence each."""
        checks = [
            ("sigmas", "a positive number", self.sigmas > 0),
            ("window", "2 or more", self.window >= 2),
            ("most", "1 or more", self.most >= 1),
            ("among", "as many as spikes.most or more", self.among >= self.most),
        ]
        return [
            f"spikes.{name} is {getattr(self, name)}; expected {wanted}" for name, wanted, good in checks if not good
        ]


class SpikeGuard:
    """Judges steps by their loss and the norm of their gradient.

    The same numbers give the same verdicts, so that ranks that are given the numbers of the whole step agree without asking each other.

    Args:
        options: when a step is a spike.
    """

    def __init__(self, options: SpikeOptions) -> None:
        self.options = options
        self._accepted: dict[str, deque[float]] = {
            name: deque(maxlen=options.window) for name in ("loss", "gradient norm")
        }
        self._verdicts: deque[bool] = deque(maxlen=options.among)

    def judge(self, loss: float, norm: float) -> str:
        """Take the next step into account.

        Args:
            loss: of the whole step.
            norm: of its gradient, before it was clipped.

        Returns:
            Why it is a spike; empty where it is none.
        """
        numbers = {"loss": loss, "gradient norm": norm}
        found = [why for name, number in numbers.items() if (why := self._above(name, number))]
        self._verdicts.append(bool(found))
        if not found:
            for name, number in numbers.items():
                self._accepted[name].append(number)
        return " and ".join(found)

    @property
    def is_too_much(self) -> bool:
        """Whether the last steps held so many spikes that the run should end."""
        return sum(self._verdicts) >= self.options.most

    def _above(self, name: str, number: float) -> str:
        """Why a number is of a spike; empty where it is not, or where too few are known to say."""
        past = self._accepted[name]
        if len(past) < self.options.window:
            return ""
        mean = fmean(past)
        sigma = max(math.sqrt(fmean((one - mean) ** 2 for one in past)), LEAST_SIGMA * abs(mean))
        limit = mean + self.options.sigmas * sigma
        if number <= limit:  # what is not a number is above
            return ""
        return f"{name} {number:.4g} is above {limit:.4g} = {mean:.4g} + {self.options.sigmas:g} x {sigma:.4g}"

    def state_dict(self) -> dict[str, Any]:
        """What is looked back on, for a checkpoint."""
        return {"accepted": {name: list(past) for name, past in self._accepted.items()}, "spikes": list(self._verdicts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Look back on that."""
        for name, past in state["accepted"].items():
            self._accepted[name] = deque((float(number) for number in past), self.options.window)
        self._verdicts = deque(map(bool, state["spikes"]), self.options.among)
