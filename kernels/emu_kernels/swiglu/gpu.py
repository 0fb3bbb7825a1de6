# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of the gate and of its gradient: each number is read once and written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import launch

BLOCK = 1024


@triton.jit
def swiglu_kernel(gate_ptr, up_ptr, out_ptr, width, num_blocks, gate_stride, up_stride, BLOCK: tl.constexpr):
    """Compute silu(gate) * up of rows (T, F), whose features lie side by side; out without gaps."""
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    feature = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < width
    gate = tl.load(gate_ptr + row * gate_stride + feature, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + feature, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * width + feature, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    grad_ptr, gate_ptr, up_ptr, d_gate_ptr, d_up_ptr, width, num_blocks, grad_stride, gate_stride, up_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute d gate and d up of rows (T, F), without gaps."""
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    feature = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < width
    grad = tl.load(grad_ptr + row * grad_stride + feature, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + feature, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + feature, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    d_gate = grad * up * share * (1.0 + gate * (1.0 - share))
    result = row * width + feature
    tl.store(d_gate_ptr + result, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + result, (grad * gate * share).to(d_up_ptr.dtype.element_ty), mask=inside)


def _as_rows(*tensors: Tensor) -> list[Tensor]:
    """Return tensors (..., F) as rows (T, F) with features side by side: as one row where nothing has gaps."""
    if all(x.is_contiguous() for x in tensors):
        return [x.view(1, -1) for x in tensors]
    rows = [x.reshape(-1, x.shape[-1]) for x in tensors]
    return [x if x.stride(1) == 1 else x.contiguous() for x in rows]


def swiglu_triton(gate: Tensor, up: Tensor) -> Tensor:
    """See `op.forward_op`; float32 or 16 bits."""
    out = gate.new_empty(gate.shape)
    if out.numel() == 0:
        return out
    gates, ups = _as_rows(gate, up)
    blocks = triton.cdiv(gates.shape[1], BLOCK)
    launch(
        swiglu_kernel, (len(gates) * blocks,), gate, gates, ups, out, gates.shape[1], blocks, gates.stride(0), ups.stride(0),
        BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def swiglu_backward_triton(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`."""
    d_gate, d_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    if d_gate.numel() == 0:
        return d_gate, d_up
    grads, gates, ups = _as_rows(grad, gate, up)
    blocks = triton.cdiv(gates.shape[1], BLOCK)
    launch(
        swiglu_backward_kernel, (len(gates) * blocks,), gate, grads, gates, ups, d_gate, d_up, gates.shape[1], blocks,
        grads.stride(0), gates.stride(0), ups.stride(0), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return d_gate, d_up
