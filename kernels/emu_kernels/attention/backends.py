"""Which implementation runs attention on a GPU: the op of this package, or one of torch's where it is faster for the case.

Legend: see `emu_kernels.attention`. `choose_backend` depends on dtype, device and options, never on the length, so that a compiled
model is one graph for all lengths.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from emu_kernels.dispatch import HALVES, TRITON_FOUND

BACKENDS = ("triton", "flash", "cudnn")
ENVIRONMENT = "EMU_KERNELS_ATTENTION"


def choose_backend(q: Tensor, packed: bool, window: int | None, softcap: float | None) -> str:
    """Choose the backend for queries (B, S, Hq, D) on a GPU; the environment variable EMU_KERNELS_ATTENTION forces one.

    cuDNN for plain masks in 16 bits (published as 1.7 to 2.3 times torch's flash on Hopper), and wherever the Triton kernels do not run;
    it stands for the first of torch's own that takes the case. "triton" stands for the op of this package.
    """
    plain = not packed and window is None and softcap is None
    forced = os.environ.get(ENVIRONMENT)
    if forced is not None:
        if forced not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT} must be one of {BACKENDS}, got {forced!r}")
        return forced if plain and q.dtype in HALVES else "triton"
    if not plain or q.dtype == torch.float64:
        return "triton"
    # No more than this of `dispatch.choose`: what a compiler traces through must be constants.
    kernels = q.is_cuda and TRITON_FOUND and torch.version.hip is None
    return "cudnn" if q.dtype in HALVES or not kernels else "triton"


def torch_attention(backend: str, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Run one of torch's own implementations, which have a backward of their own; shapes as in `attention`, plain masks only."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    # A branch, since a compiler that takes the numbers of heads as symbols gives a symbol for the comparison.
    shared = False
    if q.shape[1] != k.shape[1]:
        shared = True
    # The other names in the list serve shapes that the first one refuses.
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if backend == "flash":
        order = order[1:]
    with sdpa_kernel(order, set_priority=True):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=shared
        )
    return out.transpose(1, 2)
