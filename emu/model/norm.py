"""Root mean square norm, computed in float32 whatever the dtype of the model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales (arXiv 1910.07467).

    The statistics are float32 in float64 models too, as in transformers' Emu3.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width), same dtype."""
        if torch.is_grad_enabled():
            return _Normalise.apply(x, self.weight, self.eps)
        if x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu":
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)  # the same operations in one call
        return _normalise(x, self.weight, self.eps)[0]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # (..., 1)
    return weight * (wide * inverse).to(x.dtype), inverse


class _Normalise(torch.autograd.Function):
    """The same with its gradient in four passes over x, where autograd takes ten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        wide, grad = x.float().reshape(-1, width), grad.float().reshape(-1, width)  # (T, width)
        inverse, scale = inverse.reshape(-1, 1), weight.float()
        product = grad * wide
        along = (product @ scale)[:, None] * inverse.pow(3) / width  # (T, 1): the part of the gradient along x
        d_x = (grad * scale).mul_(inverse).addcmul_(wide, along, value=-1)
        return d_x.to(x.dtype).view(x.shape), (inverse[:, 0] @ product).to(weight.dtype), None
