"""What the losses ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import (
    FLOATS,
    INTEGERS,
    check_like,
    check_not_empty,
    check_positive,
    check_shape,
    check_tensor,
)
from emu_kernels.dispatch import HALVES

REDUCTIONS = ("mean", "sum", "none")


def in_autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtype of autocast where it is on, but a weight in float32 as it is."""
    if not isinstance(hidden, Tensor) or not torch.is_autocast_enabled(hidden.device.type):
        return hidden, weight
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), weight if weight.dtype == torch.float32 else weight.to(dtype)


def number(value: float) -> Tensor:
    """Return a number as a tensor, (): compilers take a number that an op is given for a constant, and compile anew for each."""
    return (
        torch.zeros((), dtype=torch.float64) + value
    )  # for they do the same with the number of torch.full and torch.tensor


def check_tensors(hidden: Tensor, weight: Tensor, target: Tensor, weights: Tensor | None) -> None:
    """Raise unless hidden states, weight, targets and weights of tokens fit each other."""
    check_tensor("hidden", hidden, "(T, H)", 2, FLOATS)
    check_tensor("weight", weight, "(V, H)", 2, FLOATS)
    check_tensor("target", target, "(T,)", 1, INTEGERS)
    check_not_empty("hidden", hidden, 1, "features")
    check_not_empty("weight", weight, 0, "ids")
    check_shape("weight", weight, (weight.shape[0], hidden.shape[1]), "the features of hidden")
    check_shape("target", target, (hidden.shape[0],), "the tokens of hidden")
    master = weight.dtype == torch.float32 and hidden.dtype in HALVES
    check_like("weight", weight, "hidden", hidden, same_dtype=not master)
    check_like("target", target, "hidden", hidden)
    if weights is not None:
        check_tensor("weights", weights, "(T,)", 1, FLOATS)
        check_shape("weights", weights, (hidden.shape[0],), "the tokens of hidden")
        check_like("weights", weights, "hidden", hidden)
        if weights.requires_grad:
            raise ValueError("weights is taken as a constant but requires a gradient; pass weights.detach()")


def check_numbers(z_loss: float, softcap: float | None, reduction: str) -> float:
    """Check the numbers and return the soft cap with 0.0 for none."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be a finite number of at least 0, got {z_loss}")
    if softcap is None:
        return 0.0
    check_positive("softcap", softcap)
    return float(softcap)
