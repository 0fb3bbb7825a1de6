"""Products of few rows with one to three weights, with the norm before them and the gate or the sum after them in the same launch.

A step of generation multiplies some rows with all weights of a layer and does little else: it costs what reading the weights costs, and the
time in which a GPU does not read. So what is around a product is part of it here, and layers that read the same input are one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_not_empty, check_shape, check_tensor
from emu_kernels.few_rows_linear.op import few_rows_op

MOST_WEIGHTS = 3
"""Queries, keys and values."""


def few_rows_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute `x W^T` for each weight W and join the products side by side; without a gradient.

    With `norm_weight`, x is first normed as `rms_norm` does; with `gated`, `swiglu` of two products is returned; `residual` is added last.
    On a GPU all of it is one launch, which reads each weight once for every 16 rows, sums in float32 and rounds once, at the end; a row
    depends on that row alone, to the last bit. A CPU does the operations one by one.

    Args:
        x: (..., D), float32, float64 or 16 bits.
        weights: one to three, (columns, D) each, same dtype and device; with `gated` two of the same shape, the gate's first.
        norm_weight: scale of each feature after the norm, (D,), same dtype and device; None for no norm.
        eps: added to the mean of the squares in the norm.
        gated: see above.
        residual: (..., N), same dtype and device.

    Returns:
        (..., N), dtype of x: N columns of all weights, with `gated` those of one.

    Raises:
        ValueError: a shape, a device or the number of weights does not fit.
        TypeError: a dtype is not supported.
    """
    check_tensor("x", x, "(..., D)", x.dim(), FLOATS)
    check_not_empty("x", x, x.dim() - 1, "features")
    if not 1 <= len(weights) <= MOST_WEIGHTS or (gated and len(weights) != 2):
        wanted = "2, of gate and up," if gated else f"1 to {MOST_WEIGHTS}"
        raise ValueError(f"weights has {len(weights)} tensors; expected {wanted} to multiply x with")
    for number, weight in enumerate(weights):
        name = f"weights[{number}]"
        check_tensor(name, weight, "(columns, D)", 2, FLOATS)
        check_not_empty(name, weight, 0, "columns")
        columns = len(weights[0]) if gated else len(weight)
        check_shape(name, weight, (columns, x.shape[-1]), "weights[0] and x" if gated else "the features of x")
        check_like(name, weight, "x", x, same_dtype=True)
    if norm_weight is not None:
        check_tensor("norm_weight", norm_weight, "(D,)", 1, FLOATS)
        check_shape("norm_weight", norm_weight, tuple(x.shape[-1:]), "the features of x")
        check_like("norm_weight", norm_weight, "x", x, same_dtype=True)
    if residual is not None:
        total = len(weights[0]) if gated else sum(map(len, weights))
        check_tensor("residual", residual, "(..., N)", x.dim(), FLOATS)
        check_shape("residual", residual, (*x.shape[:-1], total), "the rows of x and the columns of weights")
        check_like("residual", residual, "x", x, same_dtype=True)
    with torch.no_grad():
        return few_rows_op(x, list(weights), norm_weight, eps, gated, residual)
