"""Output head and cross-entropy in one op: loss and gradients without the (tokens, vocabulary) logits.

The gradients are made in the forward, chunk of tokens by chunk of tokens, while the chunk's logits are at hand: three matrix
products in all, and a logits buffer of fixed size (the token-chunked scheme of Liger-Kernel, arXiv 2410.10989). On top of it:
per-token weights, z-loss (PaLM, arXiv 2204.02311, section 5), soft-capping (Gemma 2, arXiv 2408.00118), and a softmax that is
restricted to a slice of the vocabulary, at the cost of the slice.
"""

from typing import Any

import torch
from torch import Tensor

from emu_kernels.checks import (
    FLOATS,
    INTEGERS,
    accumulation_dtype,
    check_like,
    check_not_empty,
    check_positive,
    check_shape,
    check_tensor,
)
from emu_kernels.linear_cross_entropy_chunked import backward_chunked, forward_chunked

REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    vocab_range: tuple[int, int] | Tensor | None = None,
    reduction: str = "mean",
    return_lse: bool = False,
    return_argmax: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Cross-entropy of `hidden @ weight.T` against `target`, differentiable in `hidden` and `weight`.

    The loss of token t is `weights[t] * (ce[t] + z_loss * lse[t] ** 2)`. Tokens whose target is `ignore_index` or whose weight
    is zero are skipped: they cost nothing, have zero loss and gradient, `lse` 0 and `argmax` -1. Without any kept token the
    loss and all gradients are zero. Sums run in float32, in float64 for float64 inputs. Under autocast `hidden` and `weight`
    are cast as for `torch.nn.functional.linear`. The first derivative only.

    Args:
        hidden: final hidden states, (T, H).
        weight: output embedding, (V, H), same dtype and device.
        target: absolute ids in the vocabulary, (T,), also under `vocab_range`.
        weights: factor of each token's loss, (T,), finite and not negative; taken as a constant.
        ignore_index: target of tokens without a loss.
        z_loss: coefficient of the squared log-sum-exp.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        vocab_range: (first id, number of ids) that the softmax runs over; or one row (first, number) per token, (T, 2).
        reduction: "mean" divides the sum by the sum of the weights of the kept tokens (their count without `weights`), "sum",
            or "none" for the losses of the tokens, which recomputes the logits in the backward: four products.
        return_lse: also return the log-sum-exp of each token's logits, (T,), differentiable (for two more products).
        return_argmax: also return the most likely id of each token within its range, (T,) int64, lowest id on ties.

    Returns:
        The loss, a scalar or (T,); with `return_lse` and `return_argmax` a tuple (loss, lse, argmax) of what was asked for.

    Raises:
        ValueError: a shape, device or range does not fit, or a kept target lies outside of its range.
        TypeError: a dtype is not supported.
    """
    if isinstance(hidden, Tensor) and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    _check_tensors(hidden, weight, target, weights)
    cap = _check_options(z_loss, softcap, reduction)
    first, count, ranges = _resolve_range(vocab_range, hidden, weight)
    needs_grad = torch.is_grad_enabled() and reduction != "none"
    wanted = return_argmax, needs_grad and hidden.requires_grad, needs_grad and weight.requires_grad
    options = first, count, ranges, cap
    loss, lse, argmax, _, _ = _forward_op(
        hidden, weight, target, weights, *options, ignore_index, z_loss, reduction, *wanted
    )
    results = [loss]
    if return_lse:
        results.append(_lse_op(hidden, weight, lse.detach(), kept_tokens(target, weights, ignore_index), *options))
    if return_argmax:
        results.append(argmax)
    return tuple(results) if len(results) > 1 else loss


def kept_tokens(target: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """Which tokens have a loss, (T,) bool."""
    kept = target != ignore_index
    return kept if weights is None else kept & (weights != 0)


def _check_tensors(hidden: Tensor, weight: Tensor, target: Tensor, weights: Tensor | None) -> None:
    check_tensor("hidden", hidden, "(T, H)", 2, FLOATS)
    check_tensor("weight", weight, "(V, H)", 2, FLOATS)
    check_tensor("target", target, "(T,)", 1, INTEGERS)
    check_not_empty("hidden", hidden, 1, "features")
    check_not_empty("weight", weight, 0, "ids")
    check_shape("weight", weight, (weight.shape[0], hidden.shape[1]), "the features of hidden")
    check_shape("target", target, (hidden.shape[0],), "the tokens of hidden")
    check_like("weight", weight, "hidden", hidden, same_dtype=True)
    check_like("target", target, "hidden", hidden)
    if weights is not None:
        check_tensor("weights", weights, "(T,)", 1, FLOATS)
        check_shape("weights", weights, (hidden.shape[0],), "the tokens of hidden")
        check_like("weights", weights, "hidden", hidden)
        if weights.requires_grad:
            raise ValueError("weights is taken as a constant but requires a gradient; pass weights.detach()")


def _check_options(z_loss: float, softcap: float | None, reduction: str) -> float:
    """Check the numbers; returns the soft cap with 0.0 for none."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be a finite number of at least 0, got {z_loss}")
    if softcap is None:
        return 0.0
    check_positive("softcap", softcap)
    return float(softcap)


def _resolve_range(
    vocab_range: tuple[int, int] | Tensor | None, hidden: Tensor, weight: Tensor
) -> tuple[int, int, Tensor | None]:
    """First id, number of ids and the per-token ranges (T, 2) or None."""
    size = weight.shape[0]
    if vocab_range is None:
        return 0, size, None
    if isinstance(vocab_range, Tensor):
        check_tensor("vocab_range", vocab_range, "(T, 2) when it is a tensor", 2, INTEGERS)
        check_shape("vocab_range", vocab_range, (hidden.shape[0], 2), "the tokens of hidden")
        check_like("vocab_range", vocab_range, "hidden", hidden)
        return 0, size, vocab_range
    if len(vocab_range) != 2:
        raise ValueError(f"vocab_range must be (first id, number of ids), got {vocab_range!r}")
    first, count = vocab_range
    if not (first >= 0 and count >= 1 and first + count <= size):
        raise ValueError(f"vocab_range (first, number) = {(first, count)} does not lie in a vocabulary of {size} ids")
    return int(first), int(count), None


@torch.library.custom_op("emu_kernels::linear_cross_entropy", mutates_args=(), device_types="cpu")
def _forward_op(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor | None,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    ignore_index: int,
    z_loss: float,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, argmax, d loss / d hidden and d loss / d weight; an output that is not asked for is empty."""
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
    )


@_forward_op.register_kernel("cuda")
def _forward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from emu_kernels.linear_cross_entropy_triton import forward_triton

    return forward_triton(*arguments)


@_forward_op.register_fake
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
    z_loss: float,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(hidden.dtype)
    num_tokens = hidden.shape[0]
    loss = hidden.new_empty(num_tokens if reduction == "none" else (), dtype=dtype)
    lse = hidden.new_empty(num_tokens, dtype=dtype)
    best = hidden.new_empty(num_tokens if argmax else 0, dtype=torch.int64)
    d_hidden = hidden.new_empty(hidden.shape if grad_hidden else (0,), dtype=dtype)
    d_weight = hidden.new_empty(weight.shape if grad_weight else (0,), dtype=dtype)
    return loss, lse, best, d_hidden, d_weight


def _forward_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, weights, first, count, ranges, softcap, ignore_index, z_loss, reduction = inputs[:11]
    _, lse, _, d_hidden, d_weight = output
    ctx.set_materialize_grads(False)
    ctx.reduction = reduction
    ctx.dtypes = hidden.dtype, weight.dtype
    if reduction != "none":
        ctx.save_for_backward(d_hidden, d_weight)
    else:
        ctx.save_for_backward(hidden, weight, target, weights, lse, ranges)
        ctx.numbers = first, count, softcap, ignore_index, z_loss


def _forward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(grad is not None for grad in grads[1:]):
        raise RuntimeError("linear_cross_entropy has a first derivative only; do not differentiate its gradients")
    missing = (None,) * 12
    grad = grads[0]
    if grad is None:
        return None, None, *missing
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    if ctx.reduction != "none":
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = _scaled(d_hidden, grad, ctx.dtypes[0]) if needs_hidden else None
        d_weight = _scaled(d_weight, grad, ctx.dtypes[1]) if needs_weight else None
        return d_hidden, d_weight, *missing
    hidden, weight, target, weights, lse, ranges = ctx.saved_tensors
    first, count, softcap, ignore_index, z_loss = ctx.numbers
    factor = grad.to(lse.dtype) if weights is None else grad.to(lse.dtype) * weights.to(lse.dtype)
    factor = torch.where(kept_tokens(target, weights, ignore_index), factor, 0.0)
    on_softmax = factor * (1.0 + 2.0 * z_loss * lse)
    d_hidden, d_weight = _backward_op(
        hidden, weight, target, on_softmax, factor, lse, first, count, ranges, softcap, needs_hidden, needs_weight
    )
    return _keep(needs_hidden, d_hidden), _keep(needs_weight, d_weight), *missing


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor in `dtype`; in one pass over the memory, unless the product itself is to be differentiated."""
    if gradient.dtype == dtype or torch.is_grad_enabled():
        return (gradient * factor).to(dtype)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def _keep(wanted: bool, gradient: Tensor) -> Tensor | None:
    return gradient if wanted else None


torch.library.register_autograd("emu_kernels::linear_cross_entropy", _forward_backward, setup_context=_forward_setup)


@torch.library.custom_op("emu_kernels::linear_cross_entropy_backward", mutates_args=(), device_types="cpu")
def _backward_op(
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
) -> tuple[Tensor, Tensor]:
    """Gradients whose logits gradient is `on_softmax * softmax - on_target * onehot(target)`, logits recomputed."""
    return backward_chunked(
        hidden, weight, target, on_softmax, on_target, lse, first, count, ranges, softcap, grad_hidden, grad_weight
    )


@_backward_op.register_kernel("cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    from emu_kernels.linear_cross_entropy_triton import backward_triton

    return backward_triton(*arguments)


@_backward_op.register_fake
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
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape if grad_hidden else (0,)), weight.new_empty(
        weight.shape if grad_weight else (0,)
    )


@torch.library.custom_op("emu_kernels::linear_log_sum_exp", mutates_args=())
def _lse_op(
    hidden: Tensor,
    weight: Tensor,
    lse: Tensor,
    kept: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
) -> Tensor:
    """A copy of `lse`, already computed, with the gradient of the log-sum-exp attached to it."""
    return lse.clone()


@_lse_op.register_fake
def _lse_fake(
    hidden: Tensor,
    weight: Tensor,
    lse: Tensor,
    kept: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
) -> Tensor:
    return torch.empty_like(lse)


def _lse_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    hidden, weight, lse, kept, first, count, ranges, softcap = inputs
    ctx.save_for_backward(hidden, weight, lse, kept, ranges)
    ctx.numbers = first, count, softcap


def _lse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, lse, kept, ranges = ctx.saved_tensors
    first, count, softcap = ctx.numbers
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    grad = torch.where(kept, grad, 0.0)
    d_hidden, d_weight = _backward_op(
        hidden, weight, None, grad, None, lse, first, count, ranges, softcap, needs_hidden, needs_weight
    )
    return _keep(needs_hidden, d_hidden), _keep(needs_weight, d_weight), *(None,) * 6


torch.library.register_autograd("emu_kernels::linear_log_sum_exp", _lse_backward, setup_context=_lse_setup)
