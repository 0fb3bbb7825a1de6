"""The norm as custom ops: its forward keeps the inverse root, from which the backward makes both gradients.

The torch code serves every device, and compilers as the account of its shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import without_autocast
from emu_kernels.rms_norm.cpu import normalise, rms_norm_backward_torch


@torch.library.custom_op("emu_kernels::rms_norm", mutates_args=())
def forward_op(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm (..., D) of x (..., D), and the inverse of its root mean square, (..., 1) float32."""
    with without_autocast(x):
        return normalise(x, weight, eps)


@torch.library.custom_op("emu_kernels::rms_norm_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (..., D) and weight (D,); an op, so that a second derivative is an error and not a wrong number."""
    with without_autocast(x):
        return rms_norm_backward_torch(grad, x, weight, inverse)


forward_op.register_fake(normalise)
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


torch.library.register_autograd("emu_kernels::rms_norm", _backward, setup_context=_setup)
