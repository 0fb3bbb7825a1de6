"""Root mean square norm, computed in float32 whatever the dtype of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emu_kernels import rms_norm


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales (arXiv 1910.07467).

    The statistics are float32 in float64 models too, as in transformers' Emu3.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x (..., width) -> (..., width), same dtype; with a residual (..., width) the norm of the sum, and the sum."""
        return rms_norm(x, self.weight, self.eps) if residual is None else rms_norm(x, self.weight, self.eps, residual)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
