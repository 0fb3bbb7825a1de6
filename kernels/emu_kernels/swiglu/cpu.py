"""The gate in torch: the CPU path, float64 on a GPU, and devices without kernels; compilers take it as the account of its shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_torch(gate: Tensor, up: Tensor) -> Tensor:
    """See `swiglu`."""
    return F.silu(gate) * up


def swiglu_backward_torch(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`; the operations of autograd, but for silu(gate), which is computed again instead of kept."""
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
