"""Root mean square norm (arXiv 1910.07467) with statistics in float32, of a tensor or of a sum, and a gradient in four passes."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_shape, check_tensor
from emu_kernels.rms_norm.cpu import rms_norm_torch
from emu_kernels.rms_norm.op import add_op, forward_op


@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...


@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `weight * x / sqrt(mean(x ** 2) + eps)` with the mean over the last axis, differentiable in x, residual and weight.

    Statistics and gradients are computed in float32 whatever the dtype, float64 included, as in transformers' Emu3. With `residual`
    it is the norm of `x + residual`, which is returned too: a block adds to its stream and norms the result, and a GPU does both in
    one pass. The first derivative only.

    Args:
        x: (..., D), float32, float64 or 16 bits.
        weight: scale of each feature, (D,), same device.
        eps: added to the mean of the squares.
        residual: what x is added to, (..., D), same device.

    Returns:
        (..., D), in the dtype that x and weight promote to; with `residual` a pair, of that and the sum (..., D).

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is not supported.
    """
    check_tensor("x", x, "(..., D)", x.dim(), FLOATS)
    check_tensor("weight", weight, "(D,)", 1, FLOATS)
    check_shape("weight", weight, tuple(x.shape[-1:]), "the features of x")
    check_like("weight", weight, "x", x)
    # Without a gradient, as in each step of generation on a CPU, the dispatch of an op would cost more than the norm of a token; and a
    # compiler fuses plain operations with their neighbours, which it cannot do with an op.
    plain = torch.compiler.is_compiling() or not (x.is_cuda or torch.is_grad_enabled())
    if residual is None:
        return rms_norm_torch(x, weight, eps) if plain else forward_op(x, weight, eps)[0]
    check_tensor("residual", residual, "(..., D)", x.dim(), FLOATS)
    check_shape("residual", residual, tuple(x.shape), "x")
    check_like("residual", residual, "x", x)
    if plain:
        total = x + residual
        return rms_norm_torch(total, weight, eps), total
    out, total, _ = add_op(x, residual, weight, eps)
    return out, total
