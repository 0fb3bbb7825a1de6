"""The gate as custom ops: the backward needs no more than the inputs, which the products before them hold anyway.

The package checks the arguments and says what they mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.swiglu.cpu import swiglu_backward_torch, swiglu_torch


@torch.library.custom_op("emu_kernels::swiglu", mutates_args=())
def forward_op(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) * up, (..., F)."""
    with without_autocast(gate):
        return swiglu_torch(gate, up)


@forward_op.register_kernel("cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("swiglu", arguments[0], _forward_kernels, swiglu_torch, *arguments)


def _forward_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.swiglu.gpu import swiglu_triton

    return swiglu_triton(*arguments)


@torch.library.custom_op("emu_kernels::swiglu_backward", mutates_args=())
def backward_op(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of gate and up, (..., F); an op, so that a second derivative is an error and not a wrong number."""
    with without_autocast(gate):
        return swiglu_backward_torch(grad, gate, up)


@backward_op.register_kernel("cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("swiglu", arguments[1], _backward_kernels, swiglu_backward_torch, *arguments)


def _backward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.swiglu.gpu import swiglu_backward_triton

    return swiglu_backward_triton(*arguments)


forward_op.register_fake(swiglu_torch)
backward_op.register_fake(swiglu_backward_torch)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return backward_op(grad, *ctx.saved_tensors)


torch.library.register_autograd("emu_kernels::swiglu", _backward, setup_context=_setup)
