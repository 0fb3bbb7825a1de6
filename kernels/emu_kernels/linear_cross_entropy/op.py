"""The loss as custom ops: what compilers see as one node, with a CPU and a GPU implementation and a backward formula each.

The package checks the arguments and says what they mean. The gradients are outputs of the forward, since they are made
there; a loss per token makes them in the backward from recomputed logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emu_kernels.checks import accumulation_dtype
from emu_kernels.dispatch import triton_or_torch, without_autocast
from emu_kernels.linear_cross_entropy.cpu import backward_chunked, forward_chunked
from emu_kernels.linear_cross_entropy.scaling import scaled


def kept_tokens(target: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """Tell which tokens have a loss, (T,) bool."""
    kept = target != ignore_index
    return kept if weights is None else kept & (weights != 0)


# Where values are checked the host waits for the GPU, which no graph can hold: compilers leave these ops out of theirs.
HOST_WAITS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("emu_kernels::linear_cross_entropy", mutates_args=(), tags=HOST_WAITS)
def forward_op(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor | None,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    ignore_index: int,
    z_loss: Tensor,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute loss, lse, argmax, gradients of hidden and weight, and the scalar that both are to be multiplied with.

    An output that is not asked for is empty. The scalar comes apart since it costs nothing beside the factor of the backward.
    """
    with without_autocast(hidden):
        return forward_chunked(
            hidden,
            weight,
            target,
            weights,
            first,
            count,
            ranges,
            softcap,
            ignore_index,
            z_loss,
            reduction,
            argmax,
            grad_hidden,
            grad_weight,
            check,
        )


@forward_op.register_kernel("cuda")
def _forward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return triton_or_torch("linear_cross_entropy", arguments[0], _forward_kernels, forward_chunked, *arguments)


def _forward_kernels(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from emu_kernels.linear_cross_entropy.gpu import forward_triton

    return forward_triton(*arguments)


@forward_op.register_fake
def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor | None,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    ignore_index: int,
    z_loss: Tensor,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(hidden.dtype)
    num_tokens = hidden.shape[0]
    loss = hidden.new_empty(num_tokens if reduction == "none" else (), dtype=dtype)
    lse = hidden.new_empty(num_tokens, dtype=dtype)
    best = hidden.new_empty(num_tokens if argmax else 0, dtype=torch.int64)
    d_hidden = hidden.new_empty(hidden.shape if grad_hidden else (0,), dtype=dtype)
    d_weight = hidden.new_empty(weight.shape if grad_weight else (0,), dtype=dtype)
    return loss, lse, best, d_hidden, d_weight, hidden.new_empty((), dtype=dtype)


def _forward_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, weights, first, count, ranges, softcap, ignore_index, z_loss, reduction = inputs[:11]
    check = inputs[14]
    _, lse, _, d_hidden, d_weight, unit = output
    ctx.set_materialize_grads(False)  # zeros of the size of the weight for gradients that no one asks for
    ctx.reduction = reduction
    ctx.dtypes = hidden.dtype, weight.dtype
    if reduction != "none":
        ctx.save_for_backward(d_hidden, d_weight, unit)
    else:
        ctx.save_for_backward(hidden, weight, target, weights, lse, ranges, z_loss)
        ctx.numbers = first, count, softcap, ignore_index, check


def _forward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(grad is not None for grad in grads[1:]):
        raise RuntimeError("linear_cross_entropy has a first derivative only; do not differentiate its gradients")
    missing = (None,) * 13
    grad = grads[0]
    if grad is None:
        return None, None, *missing
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    if ctx.reduction != "none":
        d_hidden, d_weight, unit = ctx.saved_tensors
        grad = grad * unit
        d_hidden = scaled(d_hidden, grad, ctx.dtypes[0]) if needs_hidden else None
        d_weight = scaled(d_weight, grad, ctx.dtypes[1]) if needs_weight else None
        return d_hidden, d_weight, *missing
    hidden, weight, target, weights, lse, ranges, z_loss = ctx.saved_tensors
    first, count, softcap, ignore_index, check = ctx.numbers
    factor = grad.to(lse.dtype) if weights is None else grad.to(lse.dtype) * weights.to(lse.dtype)
    # Skipped tokens have an lse of 0 that means nothing, and a gradient of theirs may be NaN: out before any product.
    factor = torch.where(kept_tokens(target, weights, ignore_index), factor, 0.0)
    on_softmax = factor * (1.0 + 2.0 * z_loss * lse)
    d_hidden, d_weight = backward_op(
        hidden,
        weight,
        target,
        on_softmax,
        factor,
        lse,
        first,
        count,
        ranges,
        softcap,
        needs_hidden,
        needs_weight,
        check,
    )
    return _keep(needs_hidden, d_hidden), _keep(needs_weight, d_weight), *missing


def _keep(wanted: bool, gradient: Tensor) -> Tensor | None:
    return gradient if wanted else None


torch.library.register_autograd("emu_kernels::linear_cross_entropy", _forward_backward, setup_context=_forward_setup)


@torch.library.custom_op("emu_kernels::linear_cross_entropy_backward", mutates_args=(), tags=HOST_WAITS)
def backward_op(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor | None,
    on_softmax: Tensor,
    on_target: Tensor | None,
    lse: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients whose logits gradient is `on_softmax * softmax - on_target * onehot(target)`, logits recomputed."""
    with without_autocast(hidden):
        return backward_chunked(
            hidden,
            weight,
            target,
            on_softmax,
            on_target,
            lse,
            first,
            count,
            ranges,
            softcap,
            grad_hidden,
            grad_weight,
            check,
        )


@backward_op.register_kernel("cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    return triton_or_torch("linear_cross_entropy", arguments[0], _backward_kernels, backward_chunked, *arguments)


def _backward_kernels(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.linear_cross_entropy.gpu import backward_triton

    return backward_triton(*arguments)


@backward_op.register_fake
def _backward_fake(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor | None,
    on_softmax: Tensor,
    on_target: Tensor | None,
    lse: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape if grad_hidden else (0,)), weight.new_empty(
        weight.shape if grad_weight else (0,)
    )


@torch.library.custom_op("emu_kernels::linear_log_sum_exp", mutates_args=())
def log_sum_exp_op(
    hidden: Tensor,
    weight: Tensor,
    lse: Tensor,
    kept: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    check: bool = True,
) -> Tensor:
    """Return a copy of `lse`, already computed, with the gradient of the log-sum-exp attached to it."""
    return lse.clone()


@log_sum_exp_op.register_fake
def _lse_fake(
    hidden: Tensor,
    weight: Tensor,
    lse: Tensor,
    kept: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    check: bool = True,
) -> Tensor:
    return torch.empty_like(lse)


def _lse_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    hidden, weight, lse, kept, first, count, ranges, softcap, check = inputs
    ctx.save_for_backward(hidden, weight, lse, kept, ranges)
    ctx.numbers = first, count, softcap, check


def _lse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, lse, kept, ranges = ctx.saved_tensors
    first, count, softcap, check = ctx.numbers
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    grad = torch.where(kept, grad, 0.0)
    d_hidden, d_weight = backward_op(
        hidden, weight, None, grad, None, lse, first, count, ranges, softcap, needs_hidden, needs_weight, check
    )
    return _keep(needs_hidden, d_hidden), _keep(needs_weight, d_weight), *(None,) * 7


torch.library.register_autograd("emu_kernels::linear_log_sum_exp", _lse_backward, setup_context=_lse_setup)
