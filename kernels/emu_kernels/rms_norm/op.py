"""The norm as custom ops, of a tensor or of a sum: the forward keeps the inverse root, from which the backward makes both gradients.

The package checks the arguments and says what they mean. T tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.rms_norm.cpu import normalise, normalise_sum, rms_norm_backward_torch


@torch.library.custom_op("emu_kernels::rms_norm", mutates_args=())
def forward_op(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm (..., D) of x (..., D), and the inverse of its root mean square, (..., 1) float32."""
    with without_autocast(x):
        return normalise(x, weight, eps)


@forward_op.register_kernel("cuda")
def _forward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("rms_norm", arguments[0], _forward_kernels, normalise, *arguments)


def _forward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.rms_norm.gpu import rms_norm_triton

    return rms_norm_triton(*arguments)


@torch.library.custom_op("emu_kernels::add_rms_norm", mutates_args=())
def add_op(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the norm (..., D) of x + residual, the sum, and the inverse of the sum's root mean square, (..., 1) float32."""
    with without_autocast(x):
        return normalise_sum(x, residual, weight, eps)


@add_op.register_kernel("cuda")
def _add_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return triton_or_torch("rms_norm", arguments[0], _add_kernels, normalise_sum, *arguments)


def _add_kernels(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from emu_kernels.rms_norm.gpu import add_rms_norm_triton

    return add_rms_norm_triton(*arguments)


@torch.library.custom_op("emu_kernels::rms_norm_backward", mutates_args=())
def backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, grad_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x (..., D), to which that of a sum is added, and of weight (D,).

    An op, so that a second derivative is an error and not a wrong number.
    """
    with without_autocast(x):
        return rms_norm_backward_torch(grad, x, weight, inverse, grad_sum)


@backward_op.register_kernel("cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("rms_norm", arguments[1], _backward_kernels, rms_norm_backward_torch, *arguments)


def _backward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.rms_norm.gpu import rms_norm_backward_triton

    return rms_norm_backward_triton(*arguments)


forward_op.register_fake(normalise)
add_op.register_fake(normalise_sum)
backward_op.register_fake(rms_norm_backward_torch)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx: Any, grad: Tensor | None, grad_inverse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    return *backward_op(grad, *ctx.saved_tensors), None


def _setup_add(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.dtypes = x.dtype, residual.dtype
    ctx.save_for_backward(output[1], weight, output[2])


def _backward_add(ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    d_weight = None
    if grad is not None:
        grad_sum, d_weight = backward_op(grad, *ctx.saved_tensors, grad_sum)
    if grad_sum is None:
        return None, None, None, None
    x, residual = ctx.dtypes
    return grad_sum.to(x), grad_sum.to(residual), d_weight, None


torch.library.register_autograd("emu_kernels::rms_norm", _backward, setup_context=_setup)
torch.library.register_autograd("emu_kernels::add_rms_norm", _backward_add, setup_context=_setup_add)
