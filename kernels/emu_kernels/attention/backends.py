"""Which implementation runs attention on a GPU: the op of this package, or one of torch's where it is faster for the case.

Legend: see `emu_kernels.attention`. `choose_backend` depends on dtype, device and options, never on the length, so that a compiled
model is one graph for all lengths.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from emu_kernels.dispatch import HALVES, TRITON_FOUND

BACKENDS = ("triton", "flash", "cudnn", "flex")
ENVIRONMENT = "EMU_KERNELS_ATTENTION"


def choose_backend(q: Tensor, packed: bool, window: int | None, softcap: float | None) -> str:
    """Name of the backend for queries (B, S, Hq, D) on a GPU; the environment variable EMU_KERNELS_ATTENTION forces one.

    cuDNN for plain masks in 16 bits (published as 1.7 to 2.3 times torch's flash on Hopper), and wherever the Triton kernels do not run;
    it stands for the first of torch's own that takes the case. "triton" stands for the op of this package.
    """
    plain = not packed and window is None and softcap is None
    forced = os.environ.get(ENVIRONMENT)
    if forced is not None:
        if forced not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT} must be one of {BACKENDS}, got {forced!r}")
        able = not packed if forced == "flex" else plain and q.dtype in HALVES
        return forced if able else "triton"
    if not plain or q.dtype == torch.float64:
        return "triton"
    # No more than this of `dispatch.choose`: what a compiler traces through must be constants.
    kernels = q.is_cuda and TRITON_FOUND and torch.version.hip is None
    return "cudnn" if q.dtype in HALVES or not kernels else "triton"


def torch_attention(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    """Attention by one of torch's own implementations, which bring their own backward; shapes as in `attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    # A branch, since a compiler that takes the numbers of heads as symbols gives a symbol for the comparison.
    shared = False
    if q.shape[1] != k.shape[1]:
        shared = True
    if backend == "flex":
        return _flex(q, k, v, causal, window, softcap, scale, shared).transpose(1, 2)
    # The other names in the list serve shapes that the first one refuses.
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if backend == "flash":
        order = order[1:]
    with sdpa_kernel(order, set_priority=True):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=shared
        )
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_mask() -> Any:
    """Without compilation the mask of a long row would be held whole, S x S."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False)


@cache
def _block_mask(length: int, causal: bool, window: int | None, device: torch.device) -> Any:
    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        visible = distance >= 0 if causal else distance == distance
        return visible if window is None else visible & (distance.abs() < window)

    return _compiled_mask()(seen, None, None, length, length, device=str(device))


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    shared: bool,
) -> Tensor:
    """Flex attention, (B, H, S, D), with a block mask that is kept per length and window."""

    limit = softcap or 1.0

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    mask = _block_mask(q.shape[2], causal, window, q.device) if causal or window is not None else None
    options = {"score_mod": None if softcap is None else cap, "block_mask": mask, "scale": scale}
    return _compiled_flex()(q, k, v, enable_gqa=shared, **options)
