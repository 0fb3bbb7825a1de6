"""The op as a custom op: what compilers see as one node, with a CPU and a GPU implementation; it has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.decode_attention.cpu import decode_attention_torch
from emu_kernels.dispatch import triton_or_torch, without_autocast


@torch.library.custom_op("emu_kernels::decode_attention", mutates_args=())
def decode_op(q: Tensor, keys: Tensor, values: Tensor, begin: Tensor, end: Tensor, scale: float) -> Tensor:
    """Attend from q (R, m, Hq, D) to the slots of keys and values (R, Hkv, C, D) from begin (R,) to each token's own."""
    with without_autocast(q):
        return decode_attention_torch(q, keys, values, begin, end, scale)


@decode_op.register_kernel("cuda")
def _decode_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("decode_attention", arguments[0], _decode_kernels, decode_attention_torch, *arguments)


def _decode_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.decode_attention.gpu import decode_attention_triton

    return decode_attention_triton(*arguments)


@decode_op.register_fake
def _decode_fake(q: Tensor, keys: Tensor, values: Tensor, begin: Tensor, end: Tensor, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
