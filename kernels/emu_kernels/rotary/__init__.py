"""Rotary embedding (arXiv 2104.09864): turns pairs of features by the angle of their token."""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_shape, check_tensor
from emu_kernels.rotary.op import rotary_op, rotary_torch


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2) of features of each head by the angle of their token, differentiable in x.

    `x * cos + roll(x, D / 2) * sin`, where the sines of the first half of the features carry a minus. Every device runs the same torch
    code; there is no Triton kernel yet.

    Args:
        x: queries or keys, (B, S, H, D), D even.
        cos: cosines of the angles, (B or 1, S, 1, D), same device; taken as a constant.
        sin: sines, (B or 1, S, 1, D), negative in the first D / 2 features; taken as a constant.

    Returns:
        (B, S, H, D), in the dtype that x and cos promote to.

    Raises:
        ValueError: a shape or device does not fit, or an angle requires a gradient.
        TypeError: a dtype is not supported.
    """
    _check_angles(x, cos, sin)
    # Without a gradient, as in each step of generation, the dispatch of an op would cost more than the rotation of a token; and a
    # compiler fuses plain operations with their neighbours, which it cannot do with an op.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return rotary_torch(x, cos, sin)
    return rotary_op(x, cos, sin)


def _check_angles(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_tensor("x", x, "(B, S, H, D)", 4, FLOATS)
    check_tensor("cos", cos, "(B or 1, S, 1, D)", 4, FLOATS)
    check_tensor("sin", sin, "(B or 1, S, 1, D)", 4, FLOATS)
    batch, length, _, width = x.shape
    if width % 2:
        raise ValueError(f"x has heads of {width} features, which do not form pairs; expected an even number")
    rows = batch if cos.shape[0] == batch else 1
    check_shape("cos", cos, (rows, length, 1, width), "x")
    check_shape("sin", sin, (rows, length, 1, width), "cos")
    check_like("cos", cos, "x", x)
    check_like("sin", sin, "cos", cos, same_dtype=True)
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("cos and sin are taken as constants but require a gradient; detach them")
