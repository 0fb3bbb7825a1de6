"""Nearest code without a table of all distances."""

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Distances held at once."""


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` [K, D] for each row of `z` [N, D], int64 [N]."""
    norms = codebook.square().sum(1)
    rows = max(1, CHUNK // codebook.shape[0])
    parts = [torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1) for part in z.split(rows)]
    return torch.cat(parts) if parts else z.new_zeros(0, dtype=torch.int64)
