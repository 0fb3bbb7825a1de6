"""The op as a custom op: what compilers see as one node, with a CPU and a GPU implementation; it has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.few_rows_linear.cpu import few_rows_linear_torch


@torch.library.custom_op("emu_kernels::few_rows_linear", mutates_args=())
def few_rows_op(
    x: Tensor, weights: list[Tensor], norm_weight: Tensor | None, eps: float, gated: bool, residual: Tensor | None
) -> Tensor:
    """Multiply x (..., D), normed where there is a norm's weight, with weights (columns, D) and join the products, or gate them."""
    with without_autocast(x):
        return few_rows_linear_torch(x, weights, norm_weight, eps, gated, residual)


@few_rows_op.register_kernel("cuda")
def _few_rows_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("few_rows_linear", arguments[0], _few_rows_kernels, few_rows_linear_torch, *arguments)


def _few_rows_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.few_rows_linear.gpu import few_rows_linear_triton

    return few_rows_linear_triton(*arguments)


@few_rows_op.register_fake
def _few_rows_fake(
    x: Tensor, weights: list[Tensor], norm_weight: Tensor | None, eps: float, gated: bool, residual: Tensor | None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weights[0]) if gated else sum(map(len, weights)))
