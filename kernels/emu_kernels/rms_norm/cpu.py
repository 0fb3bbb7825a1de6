"""The norm in torch: the CPU path, float64 on a GPU, and devices without kernels; compilers take it as the account of its shapes.

T tokens, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `rms_norm`; without the inverse root, which only the backward needs."""
    if x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        return F.rms_norm(x, (x.shape[-1],), weight, eps)  # the operations of `normalise`, to the last bit, in one call
    return normalise(x, weight, eps)[0]


def normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`."""
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # (..., 1)
    # Rounded to the dtype of x before the scale, as transformers' Emu3 does: 16-bit models give the same numbers.
    return weight * (wide * inverse).to(x.dtype), inverse


def normalise_sum(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.add_op`."""
    total = x + residual
    out, inverse = normalise(total, weight, eps)
    return out, total, inverse


def rms_norm_backward_torch(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, grad_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`; four passes over x, where autograd takes ten.

    With r = 1 / sqrt(mean(x^2) + eps) and g = grad * weight: d_x = r g - r^3 (g . x) x / D, and d_weight = sum of r x grad.
    """
    width = x.shape[-1]
    wide, grad = x.float().reshape(-1, width), grad.float().reshape(-1, width)  # (T, D)
    inverse, scale = inverse.reshape(-1, 1), weight.float()
    product = grad * wide  # of use to both gradients
    along = (product @ scale)[:, None] * inverse.pow(3) / width  # (T, 1): the part of the gradient along x
    d_x = (grad * scale).mul_(inverse).addcmul_(wide, along, value=-1).to(x.dtype).view(x.shape)
    if grad_sum is not None:
        d_x = d_x.add_(grad_sum)
    return d_x, (inverse[:, 0] @ product).to(weight.dtype)
