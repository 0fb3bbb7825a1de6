"""The search in torch, a table of scores at a time: the CPU path, float64 on a GPU, and devices without kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import accumulation_dtype

TABLE_ENTRIES = 2**20


def nearest_code_torch(z: Tensor, codebook: Tensor) -> Tensor:
    """See `nearest_code`; a table of TABLE_ENTRIES at a time."""
    dtype = accumulation_dtype(z.dtype)
    codes = codebook.detach().to(dtype)  # (K, D)
    half_norms = codes.square().sum(1).mul_(0.5)  # (K,)
    # One bound for all codes, from the longest: a little wide for the short ones.
    code_norm = half_norms.max().mul(2.0).sqrt()
    if not bool(torch.isfinite(code_norm)):
        raise ValueError("codebook has entries that are not finite")
    slack = rounding_slack(z.shape[1], dtype)
    result = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
    step = max(TABLE_ENTRIES // codes.shape[0], 16)
    table = torch.empty(min(step, z.shape[0]), codes.shape[0], dtype=dtype, device=z.device)
    for first in range(0, z.shape[0], step):
        vectors = z[first : first + step].detach().to(dtype)  # (n, D)
        scores = torch.addmm(half_norms, vectors, codes.t(), alpha=-1.0, out=table[: vectors.shape[0]])
        tolerance = slack * code_norm * (vectors.norm(dim=1) + code_norm)
        bound = scores.amin(1) + tolerance
        if not bool(torch.isfinite(bound).all()):
            raise ValueError("z has vectors that are not finite")
        row, code = (scores <= bound[:, None]).nonzero(as_tuple=True)
        if row.shape[0] != vectors.shape[0]:
            code = _closest_candidate(vectors, codes, row, code)
        result[first : first + step] = code
    return result


def rounding_slack(width: int, dtype: torch.dtype) -> float:
    """Return twice the rounding error of |e|^2 / 2 - z.e, over |e| (|z| + |e|): two scores that differ by more compare as exact ones do.

    A sum of n products is off by at most about n u times the sum of their sizes, u = eps / 2, in any order (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1): D terms of the norm, then D + 1 of the score, give (D + 1) u for one
    score. Three more eps cover terms of second order and the rounding of the bound itself.
    """
    return (width + 4) * torch.finfo(dtype).eps


def _closest_candidate(vectors: Tensor, codes: Tensor, row: Tensor, code: Tensor) -> Tensor:
    """Find, of each vector's candidates (row, code), sorted by row and code, the first with the least float64 distance, (n,)."""
    device = vectors.device
    if device.type not in ("cpu", "cuda"):  # not every other device has float64, and candidates are few
        vectors, codes, row, code = (x.cpu() for x in (vectors, codes, row, code))
    distance = (vectors[row].double() - codes[code].double()).square_().sum(1)
    least = distance.new_full((vectors.shape[0],), torch.inf).scatter_reduce_(0, row, distance, "amin")
    tied = distance == least[row]
    best = torch.full((vectors.shape[0],), codes.shape[0], dtype=torch.int64, device=vectors.device)
    return best.scatter_reduce_(0, row[tied], code[tied], "amin").to(device)
