"""Gated activation of feed-forward layers (SwiGLU, arXiv 2002.05202): silu(gate) * up; on a GPU in one pass that keeps its inputs alone."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_shape, check_tensor
from emu_kernels.swiglu.cpu import swiglu_torch
from emu_kernels.swiglu.op import forward_op


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `silu(gate) * up`, differentiable in both.

    On a GPU the numbers between are float32, views of one product are read in place, and there is a first derivative only.

    Args:
        gate: (..., F), float32, float64 or 16 bits.
        up: (..., F), same dtype and device.

    Returns:
        (..., F), dtype of gate.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is not supported.
    """
    check_tensor("gate", gate, "(..., F)", gate.dim(), FLOATS)
    check_tensor("up", up, "(..., F)", gate.dim(), FLOATS)
    check_shape("up", up, tuple(gate.shape), "gate")
    check_like("up", up, "gate", gate, same_dtype=True)
    # To compute silu(gate) again in the backward, as the op does, costs a CPU a third more; and compilers fuse plain operations themselves.
    if torch.compiler.is_compiling() or not gate.is_cuda:
        return swiglu_torch(gate, up)
    return forward_op(gate, up)
