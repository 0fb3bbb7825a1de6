"""The search as a custom op: what compilers see as one node, with a CPU and a GPU implementation; it has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.nearest_code.cpu import nearest_code_torch


@torch.library.custom_op("emu_kernels::nearest_code", mutates_args=())
def nearest_op(z: Tensor, codebook: Tensor) -> Tensor:
    """Find the index (N,) int64 of the entry of a codebook (K, D) that is nearest to each of z (N, D)."""
    with without_autocast(z):
        return nearest_code_torch(z, codebook)


@nearest_op.register_kernel("cuda")
def _nearest_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("nearest_code", arguments[0], _nearest_kernels, nearest_code_torch, *arguments)


def _nearest_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.nearest_code.gpu import nearest_code_triton

    return nearest_code_triton(*arguments)


@nearest_op.register_fake
def _nearest_fake(z: Tensor, codebook: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)
