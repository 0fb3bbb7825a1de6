"""Learning rates and weight decay as numbers: what a recipe says about its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from emu.training.muon_optimizer import MuonAdamW, hidden_matrices


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimizer with a schedule over steps.

    Attributes:
        name: "adamw", as Emu3 was trained, or "muon": Muon for the matrices between embedding and head, AdamW for the rest; from nothing
            it needs about half the steps, at the price of a few more products a step.
        lr: peak learning rate.
        weight_decay: of matrices; see `parameter_groups`.
        beta1: decay of the gradient's running mean.
        beta2: decay of the squared gradient's running mean.
        eps: added to the denominator.
        warmup_steps: steps over which the rate rises linearly from lr / warmup_steps.
        schedule: "cosine" from the peak to the last step; "wsd", constant until `decay_steps` before the last and linear from there, so
            that a run can be extended without knowing its end; or "constant".
        decay_steps: length of the last part of "wsd"; a tenth of all steps by default.
        final: fraction of the peak that is reached at the last step.
        total_steps: the last step; the trainer's `max_steps` by default. Give it where a run is cut into parts.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay_steps: int | None = None
    final: float = 0.1
    total_steps: int | None = None

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
        return found

    def _checks(self) -> list[tuple[str, str, bool]]:
        return [
            ("lr", "a positive number", self.lr > 0 and math.isfinite(self.lr)),
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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices decay; norms, biases and embeddings do not.

    A norm's gain of zero is no neutral point, and the rows of an embedding table that a batch does not use receive no gradient: decay would
    shrink rare tokens merely for being rare. A head tied to the embedding is the embedding.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in tables]
    kept = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in trained if id(parameter) not in kept]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions, total_steps: int) -> tuple[Optimizer, LambdaLR]:
    """The optimizer and its schedule; AdamW in its fused implementation where parameters allow it (one kernel call a group, on CPU too)."""
    fused = all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in model.parameters()
    )
    groups = parameter_groups(model, options.weight_decay)
    betas = (options.beta1, options.beta2)
    optimizer: Optimizer
    if options.name == "muon":
        optimizer = MuonAdamW(split_matrices(groups, model), options.lr, betas, options.eps, fused)
    else:
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=betas, eps=options.eps, fused=fused)
    return optimizer, LambdaLR(optimizer, rate_function(options, total_steps))


def split_matrices(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups, with the matrices of hidden layers in groups of their own ("matrices" is True)."""
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in hidden) == matrices], "matrices": matrices}
        for group in groups
        for matrices in (True, False)
    ]
    return [part for part in parts if part["params"]]
