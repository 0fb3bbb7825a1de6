"""Attention as custom ops: what compilers see as one node, with a CPU and a GPU implementation and a backward formula.

The package checks the arguments and says what they mean. The definitions serve every device that has no implementation of its own. On a GPU
a plain mask may take one of torch's implementations instead, by dtype, device and options and never by length, so that a compiled model is
one graph for all lengths.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from emu_kernels.attention.cpu import attention_backward_tiled, attention_tiled
from emu_kernels.checks import accumulation_dtype
from emu_kernels.dispatch import HALVES, TRITON_FOUND, triton_or_torch, without_autocast

BACKENDS = ("triton", "flash", "cudnn")
ENVIRONMENT = "EMU_KERNELS_ATTENTION"


def choose_backend(q: Tensor, packed: bool, window: int | None, softcap: float | None) -> str:
    """Choose the backend for queries (B, S, Hq, D) on a GPU; the environment variable EMU_KERNELS_ATTENTION forces one.

    Args:
        packed: whether there are documents, or queries of a part of the row.

    cuDNN for plain masks in 16 bits (published as 1.7 to 2.3 times torch's flash on Hopper), and wherever the Triton kernels do not run;
    it stands for the first of torch's own that takes the case. "triton" stands for the op of this package.
    """
    plain = not packed and window is None and softcap is None
    forced = os.environ.get(ENVIRONMENT)
    if forced is not None:
        if forced not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT} must be one of {BACKENDS}, got {forced!r}")
        return forced if plain and q.dtype in HALVES else "triton"
    # The backward of torch's own adds up in any order unless it is asked not to, and is then no faster than ours.
    if not plain or q.dtype == torch.float64 or torch.are_deterministic_algorithms_enabled():
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
    with sdpa_kernel(order, set_priority=True), without_autocast(q):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=shared
        )
    return out.transpose(1, 2)


@torch.library.custom_op("emu_kernels::attention", mutates_args=())
def forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Compute the output (B, S, Hq, D) and log-sum-exp of the scores (B, Hq, S); 0 stands for no window and no soft cap.

    `bounds` are those of the documents, which the Triton kernels compute themselves when they are not given. Query i stands at position
    `offset` + i of the row of keys.
    """
    with without_autocast(q):
        return attention_tiled(q, k, v, segment_ids, cu_seqlens, causal, window, softcap, scale, offset)


@forward_op.register_kernel("cuda")
def _forward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("attention", arguments[0], _forward_kernels, _forward_tiled, *arguments)


def _forward_tiled(*arguments: Any) -> tuple[Tensor, Tensor]:
    # Without the bounds, since it plans its tiles on the host, from the documents themselves.
    return attention_tiled(*arguments[:9], *arguments[10:])


def _forward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.attention.gpu import attention_triton

    return attention_triton(*arguments)


@forward_op.register_fake
def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    batch, length, num_heads, _ = q.shape
    lse = q.new_empty(batch, num_heads, length, dtype=accumulation_dtype(q.dtype))
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@torch.library.custom_op("emu_kernels::attention_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v."""
    with without_autocast(q):
        return attention_backward_tiled(
            grad, q, k, v, out, lse, segment_ids, cu_seqlens, causal, window, softcap, scale, offset
        )


@backward_op.register_kernel("cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return triton_or_torch("attention", arguments[1], _backward_kernels, _backward_tiled, *arguments)


def _backward_tiled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward_tiled(*arguments[:12], *arguments[13:])


def _backward_kernels(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from emu_kernels.attention.gpu_backward import attention_backward_triton

    return attention_backward_triton(*arguments)


@backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    bounds: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return d_q, d_k, d_v


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segment_ids, cu_seqlens, *ctx.options, bounds, ctx.offset = inputs
    ctx.set_materialize_grads(False)  # no zeros for the gradient of the log-sum-exp, which never comes
    ctx.mark_non_differentiable(output[1])  # or its gradient would be lost without a word
    ctx.save_for_backward(q, k, v, *output, segment_ids, cu_seqlens, bounds)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    missing = (None,) * 8
    if grad is None:
        return None, None, None, *missing
    *tensors, bounds = ctx.saved_tensors
    return *backward_op(grad, *tensors, *ctx.options, bounds, ctx.offset), *missing


torch.library.register_autograd("emu_kernels::attention", _backward, setup_context=_setup)
