"""The rotation as a custom op: its gradient is the rotation back, hence the op again.

One implementation in torch serves every device, and compilers as the account of its shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.dispatch import without_autocast


def rotary_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rotary`."""
    # Two passes over x: the sign of the sines spares the concatenation of two halves, one of them negated.
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


@torch.library.custom_op("emu_kernels::rotary", mutates_args=())
def rotary_op(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, S, H, D) by angles (B or 1, S, 1, D)."""
    with without_autocast(x):
        return rotary_torch(x, cos, sin)


rotary_op.register_fake(rotary_torch)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    cos, sin = ctx.saved_tensors
    return rotary_op(grad, cos, -sin), None, None


torch.library.register_autograd("emu_kernels::rotary", _backward, setup_context=_setup)
