"""The norm in torch, on every device. T tokens, D features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `rms_norm`."""
    if x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        return F.rms_norm(x, (x.shape[-1],), weight, eps)  # the operations of `normalise`, to the last bit, in one call
    return normalise(x, weight, eps)[0]


def normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`."""
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # (..., 1)
    # Rounded to the dtype of x before the scale, as transformers' Emu3 does: 16-bit models give the same numbers.
    return weight * (wide * inverse).to(x.dtype), inverse


def rms_norm_backward_torch(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`; four passes over x, where autograd takes ten.

    With r = 1 / sqrt(mean(x^2) + eps) and g = grad * weight: d_x = r g - r^3 (g . x) x / D, and d_weight = sum of r x grad.
    """
    width = x.shape[-1]
    wide, grad = x.float().reshape(-1, width), grad.float().reshape(-1, width)  # (T, D)
    inverse, scale = inverse.reshape(-1, 1), weight.float()
    product = grad * wide  # of use to both gradients
    along = (product @ scale)[:, None] * inverse.pow(3) / width  # (T, 1): the part of the gradient along x
    d_x = (grad * scale).mul_(inverse).addcmul_(wide, along, value=-1)
    return d_x.to(x.dtype).view(x.shape), (inverse[:, 0] @ product).to(weight.dtype)
