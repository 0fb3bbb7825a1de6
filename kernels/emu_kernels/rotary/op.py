"""The rotation as custom ops: alone, after the norm of each head, and for a step of generation, which writes to the cache.

The gradient of a rotation is the rotation back, hence the op again. The package checks the arguments and says what they mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.rotary.cpu import norm_rotary_backward_torch, norm_rotary_torch, rotary_into_torch, rotary_torch


@torch.library.custom_op("emu_kernels::rotary", mutates_args=())
def rotary_op(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, S, H, D) by angles (B or 1, S, 1, D)."""
    with without_autocast(x):
        return rotary_torch(x, cos, sin)


@rotary_op.register_kernel("cuda")
def _rotary_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("rotary", arguments[0], _rotary_kernels, rotary_torch, *arguments)


def _rotary_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.rotary.gpu import rotary_triton

    return rotary_triton(*arguments)


@torch.library.custom_op("emu_kernels::norm_rotary", mutates_args=())
def norm_rotary_op(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Norm the heads of x (B, S, H, D) and turn them; also the inverse root mean squares, (B, S, H, 1) float32."""
    with without_autocast(x):
        return norm_rotary_torch(x, weight, cos, sin, eps)


@norm_rotary_op.register_kernel("cuda")
def _norm_rotary_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("rotary", arguments[0], _norm_rotary_kernels, norm_rotary_torch, *arguments)


def _norm_rotary_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.rotary.gpu import norm_rotary_triton

    return norm_rotary_triton(*arguments)


@torch.library.custom_op("emu_kernels::norm_rotary_backward", mutates_args=())
def norm_rotary_backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x (B, S, H, D) and weight (D,)."""
    with without_autocast(x):
        return norm_rotary_backward_torch(grad, x, weight, inverse, cos, sin)


@norm_rotary_backward_op.register_kernel("cuda")
def _norm_rotary_backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    kernels = _norm_rotary_backward_kernels
    return triton_or_torch("rotary", arguments[1], kernels, norm_rotary_backward_torch, *arguments)


def _norm_rotary_backward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.rotary.gpu import norm_rotary_backward_triton

    return norm_rotary_backward_triton(*arguments)


@torch.library.custom_op("emu_kernels::rotary_into", mutates_args=("keys", "values"))
def rotary_into_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """Return q (B, S, Hq, D) normed and turned, and write k, normed and turned, and v (B, S, Hkv, D) to their places (B, S)."""
    with without_autocast(q):
        return rotary_into_torch(q, k, v, cos, sin, keys, values, places, q_weight, k_weight, eps)


@rotary_into_op.register_kernel("cuda")
def _into_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("rotary", arguments[0], _into_kernels, rotary_into_torch, *arguments)


def _into_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.rotary.gpu_into import rotary_into_triton

    return rotary_into_triton(*arguments)


rotary_op.register_fake(rotary_torch)
norm_rotary_op.register_fake(norm_rotary_torch)
norm_rotary_backward_op.register_fake(norm_rotary_backward_torch)


@rotary_into_op.register_fake
def _into_fake(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, *others: Any) -> Tensor:
    return q.new_empty(q.shape, dtype=keys.dtype)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    cos, sin = ctx.saved_tensors
    return rotary_op(grad, cos, -sin), None, None


def _setup_norm(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, cos, sin, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1], cos, sin)


def _backward_norm(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return *norm_rotary_backward_op(grad, *ctx.saved_tensors), None, None, None


torch.library.register_autograd("emu_kernels::rotary", _backward, setup_context=_setup)
torch.library.register_autograd("emu_kernels::norm_rotary", _backward_norm, setup_context=_setup_norm)
