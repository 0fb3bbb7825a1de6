"""Root mean square norm (arXiv 1910.07467) with statistics in float32, and a gradient in four passes over the input."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_shape, check_tensor
from emu_kernels.rms_norm.op import forward_op, rms_norm_torch


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `weight * x / sqrt(mean(x ** 2) + eps)` with the mean over the last axis, differentiable in x and weight.

    Statistics and gradients are computed in float32 whatever the dtype, float64 included, as in transformers' Emu3. Every device
    runs the same torch code; there is no Triton kernel yet. The first derivative only.

    Args:
        x: (..., D), float32, float64 or 16 bits.
        weight: scale of each feature, (D,), same device.
        eps: added to the mean of the squares.

    Returns:
        (..., D), in the dtype that x and weight promote to.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is not supported.
    """
    check_tensor("x", x, "(..., D)", x.dim(), FLOATS)
    check_tensor("weight", weight, "(D,)", 1, FLOATS)
    check_shape("weight", weight, tuple(x.shape[-1:]), "the features of x")
    check_like("weight", weight, "x", x)
    # Without a gradient, as in each step of generation, the dispatch of an op would cost more than the norm of a token; and a compiler
    # fuses plain operations with their neighbours, which it cannot do with an op.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return rms_norm_torch(x, weight, eps)
    return forward_op(x, weight, eps)[0]
