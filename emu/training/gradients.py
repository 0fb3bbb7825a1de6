"""What is done with the gradient of a step before the optimizer takes it: clipped, or dropped where it is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn


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
