"""The norm as custom ops: its forward keeps the inverse root, from which the backward makes both gradients.

One implementation in torch serves every device, and compilers as the account of its shapes. T tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emu_kernels.dispatch import without_autocast


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `rms_norm`; without the inverse root, which only the backward needs."""
    if x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        return F.rms_norm(x, (x.shape[-1],), weight, eps)  # the operations of `normalise`, to the last bit, in one call
    return normalise(x, weight, eps)[0]


def normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `forward_op`."""
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # (..., 1)
    # Rounded to the dtype of x before the scale, as transformers' Emu3 does: 16-bit models give the same numbers.
    return weight * (wide * inverse).to(x.dtype), inverse


def rms_norm_backward_torch(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """See `backward_op`; four passes over x, where autograd takes ten.

    With r = 1 / sqrt(mean(x^2) + eps) and g = grad * weight: d_x = r g - r^3 (g . x) x / D, and d_weight = sum of r x grad.
    """
    width = x.shape[-1]
    wide, grad = x.float().reshape(-1, width), grad.float().reshape(-1, width)  # (T, D)
    inverse, scale = inverse.reshape(-1, 1), weight.float()
    product = grad * wide  # of use to both gradients
    along = (product @ scale)[:, None] * inverse.pow(3) / width  # (T, 1): the part of the gradient along x
    d_x = (grad * scale).mul_(inverse).addcmul_(wide, along, value=-1)
    return d_x.to(x.dtype).view(x.shape), (inverse[:, 0] @ product).to(weight.dtype)


@torch.library.custom_op("emu_kernels::rms_norm", mutates_args=())
def forward_op(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the norm (..., D) of x (..., D), and the inverse of its root mean square, (..., 1) float32."""
    with without_autocast(x):
        return normalise(x, weight, eps)


@torch.library.custom_op("emu_kernels::rms_norm_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x (..., D) and weight (D,); an op, so that a second derivative is an error and not a wrong number."""
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
