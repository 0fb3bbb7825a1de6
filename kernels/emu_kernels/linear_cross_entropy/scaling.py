"""Factors that keep gradients of logits exact in 16 bits, and off again in the pass that casts the results."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def amplifier_of(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what makes the largest of `factors`, the sizes of the logits' gradients, a power of two, a scalar tensor.

    Tokens mostly have one factor, say 1 / 1,800, and a target's gradient is almost that: rounded to bfloat16 it would be off by as much for
    all of them, and so the whole gradient (by 0.25 % for 1 / 1,800). Powers of two have no such error; float16 needs its range too.
    """
    if factors.numel() == 0:
        return factors.new_ones(())
    # 2 ** 12 leaves room below 65,504, the largest float16.
    return (2.0**12 if dtype == torch.float16 else 1.0) / factors.abs().amax().clamp(min=2.0**-100)


def z_loss_bound(hidden: Tensor, weight: Tensor, kept: Tensor, softcap: float, z_loss: Tensor) -> Tensor:
    """Return a power of two that 1 + 2 z lse, the factor of the softmax in the gradient, does not exceed."""
    # No logit exceeds |hidden| |weight|, and the lse exceeds the largest by the log of their number at most.
    in_hidden, in_weight = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (hidden, weight))
    logit = torch.where(kept, in_hidden, 0.0).amax() * in_weight.amax()
    logit = logit.clamp(max=softcap) if softcap else logit
    return torch.exp2(torch.ceil(torch.log2(1.0 + 2.0 * z_loss * (logit + math.log(weight.shape[0])))))


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient * factor in `dtype`; in one pass over the memory, unless the product itself is to be differentiated."""
    if gradient.dtype == dtype or torch.is_grad_enabled():
        return (gradient * factor).to(dtype)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
