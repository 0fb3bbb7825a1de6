# mypy: allow-incomplete-defs, allow-untyped-defs
"""Search among codes of many features on a GPU: cuBLAS makes a table of scores, a Triton kernel reads each row once or twice.

What `gpu.py` computes in registers pays for few features, where products are nothing beside comparisons; codes of 256 features are a
product of matrices. A row whose two best scores lie within their rounding is searched again in float64, as there. Legend: see `gpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import launch
from emu_kernels.nearest_code.cpu import rounding_slack
from emu_kernels.nearest_code.gpu_exact import exact_distance

TABLE_BYTES = 256 * 2**20
BLOCK = 2048


@triton.jit
def table_kernel(
    score_ptr, z_ptr, codebook_ptr, code_norm_ptr, result_ptr, num_codes, width, slack, BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Find the nearest code of one vector: scores (n, K) float32, z (n, D), codebook (K, D), code_norm (1,) -> result (n,) int64."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    least = tl.full((BLOCK,), float("inf"), dtype=tl.float32)
    for first in range(0, num_codes, BLOCK):
        inside = first + lane < num_codes
        least = tl.minimum(least, tl.load(score_ptr + row * num_codes + first + lane, mask=inside, other=float("inf")))
    norm = tl.zeros((BLOCK_WIDTH,), dtype=tl.float32)
    for first in range(0, width, BLOCK_WIDTH):
        feature = first + tl.arange(0, BLOCK_WIDTH)
        value = tl.load(z_ptr + row * width + feature, mask=feature < width, other=0.0).to(tl.float32)
        norm += value * value
    code_norm = tl.load(code_norm_ptr)
    bound = tl.min(least, axis=0) + slack * code_norm * (tl.sqrt(tl.sum(norm, axis=0)) + code_norm)
    num_close = 0
    nearest = tl.full((), 2147483647, dtype=tl.int32)
    for first in range(0, num_codes, BLOCK):
        codes = first + lane
        close = tl.load(score_ptr + row * num_codes + codes, mask=codes < num_codes, other=float("inf")) <= bound
        num_close += tl.sum(close.to(tl.int32), axis=0)
        nearest = tl.minimum(nearest, tl.min(tl.where(close, codes, 2147483647), axis=0))
    if num_close > 1:
        best = tl.full((BLOCK,), float("inf"), dtype=tl.float64)
        place = tl.zeros((BLOCK,), dtype=tl.int32)
        vectors = tl.zeros((BLOCK,), dtype=tl.int64) + row
        for first in range(0, num_codes, BLOCK):
            codes = first + lane
            close = tl.load(score_ptr + row * num_codes + codes, mask=codes < num_codes, other=float("inf")) <= bound
            if tl.max(close.to(tl.int32), axis=0) > 0:
                distance = exact_distance(z_ptr, codebook_ptr, vectors, codes, close, width)
                place = tl.where(distance < best, codes, place)
                best = tl.minimum(distance, best)
        nearest = tl.min(tl.where(best == tl.min(best, axis=0), place, 2147483647), axis=0)
    tl.store(result_ptr + row, tl.minimum(nearest, num_codes - 1).to(tl.int64))  # some code where a row is not a number


@contextmanager
def whole_float32() -> Iterator[None]:
    """Products of float32 without TF32, whatever the user has allowed: its rounding is beyond the bound."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def nearest_code_wide(z: Tensor, codebook: Tensor, table_bytes: int = TABLE_BYTES, block: int = BLOCK) -> Tensor:
    """See `nearest_code`; z (N, D) and codebook (K, D) in float32 or a 16-bit dtype, without gaps. No host sync."""
    (num_vectors, width), num_codes = z.shape, codebook.shape[0]
    result = torch.empty(num_vectors, dtype=torch.int64, device=z.device)
    codes = codebook.float()
    half_norm = codes.square().sum(1).mul_(0.5)
    code_norm = half_norm.max().mul(2.0).sqrt().reshape(1)
    step = min(max(table_bytes // (4 * num_codes), 1), num_vectors)
    table = torch.empty(step, num_codes, dtype=torch.float32, device=z.device)
    slack = rounding_slack(width, torch.float32)
    with whole_float32():
        for first in range(0, num_vectors, step):
            vectors = z[first : first + step]
            scores = table[: len(vectors)]
            torch.addmm(half_norm, vectors.float(), codes.t(), alpha=-1.0, out=scores)
            launch(
                table_kernel, (len(vectors),), z, scores, vectors, codebook, code_norm, result[first : first + step], num_codes,
                width, slack, BLOCK=block, BLOCK_WIDTH=64, num_warps=4,
            )  # fmt: skip
    return result
