"""The optimizer of a transformer: which parameters decay, which are the matrices that Muon takes, and the guard of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from emu_tokenizers.training.muon import MuonAdamW
from emu_tokenizers.training.schedules import OptimizerOptions, rate_function


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices decay; norms, biases and embeddings do not.

    A gain of zero is not a norm's neutral point, and the rows of an embedding table that a batch does not use receive no gradient: decay
    would shrink rare tokens merely for being rare. A head tied to the embedding is the embedding.
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
        optimizer = MuonAdamW(split_matrices(groups, model, options.matrix_lr), options.lr, betas, options.eps, fused)
    else:
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=betas, eps=options.eps, fused=fused)
    return optimizer, LambdaLR(optimizer, rate_function(options, total_steps))


def split_matrices(
    groups: list[dict[str, Any]], model: nn.Module, matrix_lr: float | None = None
) -> list[dict[str, Any]]:
    """The groups, with the matrices of hidden layers in groups of their own ("matrices" is True), at their own rate if one is given."""
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in hidden) == matrices], "matrices": matrices}
        for group in groups
        for matrices in (True, False)
    ]
    for part in parts:
        if part["matrices"] and matrix_lr is not None:
            part["lr"] = matrix_lr
    return [part for part in parts if part["params"]]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that are neither embedding nor head; both map between ids and features, where a row stands for itself."""
    outside = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "lm_head", None)
    outside += [head.weight] if isinstance(head, nn.Linear) else []
    left_out = {id(parameter) for parameter in outside}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in left_out]


class GradientGuard:
    """Clips gradients to a norm; a step whose gradient is not finite changes nothing.

    Args:
        max_norm: gradients are scaled down to this norm.
        max_skipped: N steps in a row that are not finite end the run.

    Attributes:
        num_skipped: steps skipped so far.
    """

    def __init__(self, max_norm: float, max_skipped: int) -> None:
        self.max_norm, self.max_skipped = max_norm, max_skipped
        self.num_skipped = 0
        self._in_a_row = 0

    def problems(self) -> list[str]:
        """What is wrong with the numbers, one sentence each."""
        found = []
        if not self.max_norm > 0:
            found.append(f"max_grad_norm is {self.max_norm}; expected a positive number (inf for no limit)")
        if self.max_skipped < 1:
            found.append(f"max_skipped_steps is {self.max_skipped}; expected 1 or more")
        return found

    def apply(self, parameters: Iterable[nn.Parameter], step: int) -> float:
        """Clip the gradients of a step, or drop them, so that the optimizer leaves everything as it is.

        Returns:
            Their norm before, 0 where it was not finite.

        Raises:
            FloatingPointError: it was not finite for `max_skipped` steps in a row.
        """
        parameters = list(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if math.isfinite(value):
            self._in_a_row = 0
            return value
        for parameter in parameters:
            parameter.grad = None
        self.num_skipped += 1
        self._in_a_row += 1
        rank_zero_warn(f"step {step}: gradient norm {value}; skipped ({self.num_skipped} so far)")
        if self._in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"the gradient was not finite for {self._in_a_row} steps in a row, up to step {step}; lower model.optimizer.lr, or look at "
                "the documents of these steps"
            )
        return 0.0

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"num_skipped": self.num_skipped, "skipped_in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from those counts."""
        self.num_skipped, self._in_a_row = int(state["num_skipped"]), int(state["skipped_in_a_row"])
