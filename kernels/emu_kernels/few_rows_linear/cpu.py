"""The product with what is around it in torch: the CPU path, float64 on a GPU, and devices without kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from emu_kernels.rms_norm.cpu import rms_norm_torch
from emu_kernels.swiglu.cpu import swiglu_torch


def few_rows_linear_torch(
    x: Tensor, weights: list[Tensor], norm_weight: Tensor | None, eps: float, gated: bool, residual: Tensor | None
) -> Tensor:
    """See `few_rows_linear`; the operations of a layer one by one, with the roundings between them."""
    if norm_weight is not None:
        x = rms_norm_torch(x, norm_weight, eps)
    parts = [F.linear(x, weight) for weight in weights]
    out = swiglu_torch(*parts) if gated else torch.cat(parts, -1)
    return out if residual is None else out + residual
