"""What a recipe says about its optimizer, whichever model it trains: rates, their schedule, weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RateFactors:
    """What the parameters of a group get of an optimizer's numbers.

    Attributes:
        lr: factor of the learning rate, at all steps.
        weight_decay: factor of the weight decay.
    """

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimizer with a schedule over steps.

    Attributes:
        name: "adamw", as Emu3 was trained, or "muon": Muon for the matrices between embedding and head, AdamW for the rest; from nothing
            it needs about half the steps, at the price of a few more products a step.
        lr: peak learning rate.
        matrix_lr: peak learning rate of the parameters that Muon takes; `lr` by default. Small convolutions want about ten times as much.
        weight_decay: of matrices; see `parameter_groups`.
        beta1: decay of the gradient's running mean.
        beta2: decay of the squared gradient's running mean.
        eps: added to the denominator.
        warmup_steps: steps over which the rate rises linearly from lr / warmup_steps.
        schedule: "cosine" from the end of the warm-up to the last step; "full_cosine", a cosine over all steps, which the warm-up
            multiplies; "wsd", constant until `decay_steps` before the last step and linear from there, so that a run can be extended
            without knowing its end; or "constant".
        decay_steps: length of the last part of "wsd"; a tenth of all steps by default.
        final: fraction of the peak that is reached at the last step.
        total_steps: the last step; the trainer's `max_steps` by default. Give it where a run is cut into parts.
        groups: pattern of names of parameters -> factors of their rate and decay, e.g. {"*.layers.0.*": {lr: 0.5}}; the first pattern
            that a name matches counts.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    matrix_lr: float | None = None
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["cosine", "full_cosine", "wsd", "constant"] = "cosine"
    decay_steps: int | None = None
    final: float = 0.1
    total_steps: int | None = None
    groups: dict[str, RateFactors] = field(default_factory=dict)

    def problems(self, max_steps: int) -> list[str]:
        """Everything wrong with these numbers in a run of `max_steps` steps (-1 when that is unknown), one sentence each."""
        found = [
            f"optimizer.{name} is {getattr(self, name)}; expected {wanted}"
            for name, wanted, good in self._checks()
            if not good
        ]
        if self.schedule != "constant" and self.total_steps is None and max_steps < 1:
            found.append(
                f'schedule "{self.schedule}" needs a last step; set trainer.max_steps or optimizer.total_steps'
            )
        if self.matrix_lr is not None and self.name != "muon":
            found.append(
                f"optimizer.matrix_lr is {self.matrix_lr}, a rate of Muon; set optimizer.name to muon, or leave it out"
            )
        for pattern, factors in self.groups.items():
            for name, factor in (("lr", factors.lr), ("weight_decay", factors.weight_decay)):
                if not 0 <= factor < math.inf:
                    found.append(f"optimizer.groups, {pattern!r}: {name} is {factor}; expected a factor of 0 or more")
        return found

    def _checks(self) -> list[tuple[str, str, bool]]:
        return [
            ("lr", "a positive number", self.lr > 0 and math.isfinite(self.lr)),
            ("matrix_lr", "a positive number", self.matrix_lr is None or 0 < self.matrix_lr < math.inf),
            ("weight_decay", "0 or more", self.weight_decay >= 0),
            ("beta1", "a number in [0, 1)", 0 <= self.beta1 < 1),
            ("beta2", "a number in [0, 1)", 0 <= self.beta2 < 1),
            ("eps", "a positive number", self.eps > 0),
            ("warmup_steps", "0 or more", self.warmup_steps >= 0),
            ("decay_steps", "1 or more", self.decay_steps is None or self.decay_steps >= 1),
            ("final", "a fraction in [0, 1]", 0 <= self.final <= 1),
            ("total_steps", "1 or more", self.total_steps is None or self.total_steps >= 1),
        ]


def rate_factor(step: int, options: OptimizerOptions, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (counted from 0) as a fraction of the peak."""
    if options.schedule == "full_cosine":
        risen = min(1.0, (step + 1) / max(options.warmup_steps, 1))
        done = min(step / max(total_steps, 1), 1.0)
        return risen * ((1.0 + options.final) / 2 + (1.0 - options.final) / 2 * math.cos(math.pi * done))
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return 1.0
    start = options.warmup_steps
    if options.schedule == "wsd":
        start = max(start, total_steps - (options.decay_steps or max(1, total_steps // 10)))
    progress = min(1.0, max(0.0, (step + 1 - start) / max(1, total_steps - start)))
    falling = 1.0 - progress if options.schedule == "wsd" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return options.final + (1.0 - options.final) * falling


def rate_function(options: OptimizerOptions, total_steps: int) -> Callable[[int], float]:
    """`rate_factor` as a function of the step alone."""
    return lambda step: rate_factor(step, options, total_steps)
