"""Output head and cross-entropy in one op: loss and gradients without the (tokens, vocabulary) logits.

The gradients are made in the forward, chunk of tokens by chunk of tokens, while the chunk's logits are at hand: three matrix
products in all, and a logits buffer of fixed size (the token-chunked scheme of Liger-Kernel, arXiv 2410.10989). On top of it:
per-token weights, z-loss (PaLM, arXiv 2204.02311, section 5), soft-capping (Gemma 2, arXiv 2408.00118), and a softmax that is
restricted to a slice of the vocabulary, at the cost of the slice.

What the options are for: training takes the mean or the sum. The losses of tokens ("none") are log-probabilities with the sign
turned: curves by kind of token, and objectives such as DPO and GRPO. A `vocab_range` is the distribution that generation samples
from, one modality's ids. `return_argmax` gives accuracy without logits, and `softcap` serves checkpoints of Gemma 2. When each rank
has a part of the vocabulary, `split_linear_cross_entropy` is the loss over the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import INTEGERS, check_like, check_shape, check_tensor
from emu_kernels.linear_cross_entropy.arguments import check_numbers, check_tensors, in_autocast, number
from emu_kernels.linear_cross_entropy.op import forward_op, kept_tokens, log_sum_exp_op


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
    check_values: bool = True,
) -> Tensor | tuple[Tensor, ...]:
    """Compute the cross-entropy of `hidden @ weight.T` against `target`, differentiable in `hidden` and `weight`.

    The loss of token t is `weights[t] * (ce[t] + z_loss * lse[t] ** 2)`. Tokens whose target is `ignore_index` or whose weight
    is zero are skipped: they cost nothing, have zero loss and gradient, `lse` 0 and `argmax` -1. Without any kept token the
    loss and all gradients are zero. Sums run in float32, in float64 for float64 inputs. Under autocast the products run in
    its dtype as for `torch.nn.functional.linear`, but a float32 `weight` keeps the gradient that was summed in float32. The
    first derivative only.

    Args:
        hidden: final hidden states, (T, H).
        weight: output embedding, (V, H), same device, and same dtype or float32 beside 16 bits: it is then rounded to the dtype
            of `hidden` for the products, and its gradient is float32.
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
        check_values: False reads no values, so that the host never waits for a GPU (else once in the forward, and once in a backward
            that recomputes logits) and a CUDA graph can hold the call. Skipped tokens are then computed like the others, targets
            outside of their range have no logit, weights are taken as they are, and `vocab_range` is not a tensor.

    Returns:
        The loss, a scalar or (T,); with `return_lse` and `return_argmax` a tuple (loss, lse, argmax) of what was asked for.

    Raises:
        ValueError: a shape, device or range does not fit, or a kept target lies outside of its range.
        TypeError: a dtype is not supported.
    """
    hidden, weight = in_autocast(hidden, weight)
    check_tensors(hidden, weight, target, weights)
    cap = check_numbers(z_loss, softcap, reduction)
    first, count, ranges = _resolve_range(vocab_range, hidden, weight)
    if ranges is not None and not check_values:
        raise ValueError(
            "vocab_range is a tensor, whose values must be read; give (first, number) with check_values=False"
        )
    needs_grad = torch.is_grad_enabled() and reduction != "none"
    wanted = return_argmax, needs_grad and hidden.requires_grad, needs_grad and weight.requires_grad
    options = first, count, ranges, cap
    numbers = *options, ignore_index, number(z_loss), reduction
    loss, lse, argmax, *_ = forward_op(hidden, weight, target, weights, *numbers, *wanted, check_values)
    results = [loss]
    if return_lse:
        kept = kept_tokens(target, weights, ignore_index)
        results.append(log_sum_exp_op(hidden, weight, lse.detach(), kept, *options, check_values))
    if return_argmax:
        results.append(argmax)
    return tuple(results) if len(results) > 1 else loss


def _resolve_range(
    vocab_range: tuple[int, int] | Tensor | None, hidden: Tensor, weight: Tensor
) -> tuple[int, int, Tensor | None]:
    """Return first id, number of ids and the per-token ranges (T, 2) or None."""
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
