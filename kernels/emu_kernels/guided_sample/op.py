"""The sampler as an op: what compilers see as one node, with a CPU and a GPU implementation; it has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import triton_or_torch
from emu_kernels.guided_sample.cpu import guided_sample_torch

# A decode step calls this op once; a plain definition costs half as much per call as torch.library.custom_op.
torch.library.define(
    "emu_kernels::guided_sample",
    "(Tensor logits, float scale, float part_scale, float temperature, int top_k, float top_p, "
    "Tensor seed, Tensor stream, Tensor position, int draw) -> Tensor",
)
sample_op = torch.ops.emu_kernels.guided_sample.default


# On every device that has no implementation of its own.
torch.library.impl("emu_kernels::guided_sample", "CompositeExplicitAutograd", guided_sample_torch)


def _sample_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("guided_sample", arguments[0], _sample_kernels, guided_sample_torch, *arguments)


def _sample_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.guided_sample.gpu import guided_sample_triton

    return guided_sample_triton(*arguments)


torch.library.impl("emu_kernels::guided_sample", "cuda", _sample_cuda)


@torch.library.register_fake("emu_kernels::guided_sample")
def _sample_fake(
    logits: Tensor,
    scale: float,
    part_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: Tensor,
    stream: Tensor,
    position: Tensor,
    draw: int,
) -> Tensor:
    return logits.new_empty(logits.shape[1], dtype=torch.int64)
