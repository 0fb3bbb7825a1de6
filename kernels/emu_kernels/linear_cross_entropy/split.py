"""The loss when each rank has a part of the vocabulary: the part's statistics on each, and one exchange of a few numbers a token.

The log-sum-exp of the whole is that of the parts, and the logit of a target is with one rank alone. The backward recomputes the logits
of the part, so that there are four products as for a loss per token. Legend: T tokens, H features, V ids of this rank, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

from emu_kernels.linear_cross_entropy.arguments import check_numbers, check_tensors, in_autocast, number
from emu_kernels.linear_cross_entropy.groups import check_weights, keep_tokens, mean_scale
from emu_kernels.linear_cross_entropy.op import backward_op, forward_op, kept_tokens

SKIPPED = -1
"""What stands for the target of a token without a loss; ids of a part begin at 0."""


def split_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    first: int,
    group: Any = None,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    check_values: bool = True,
) -> Tensor:
    """Compute `linear_cross_entropy` over a vocabulary that is split between ranks, differentiable in `hidden` and `weight`.

    All ranks call it with the same hidden states, targets and options and each with its rows of the output embedding; all get the
    same loss, the whole gradient of `hidden`, and the gradient of their rows. The first derivative only.

    Args:
        hidden: final hidden states, (T, H), the same on all ranks.
        weight: this rank's part of the output embedding, (V, H); dtypes as for `linear_cross_entropy`.
        target: absolute ids in the whole vocabulary, (T,), the same on all ranks.
        first: absolute id of the first row of `weight`; the parts may be of any sizes, and each id is in one of them.
        group: process group of the ranks; all processes by default.
        weights, ignore_index, z_loss, softcap, reduction: see `linear_cross_entropy`; the same on all ranks.
        check_values: False reads no values, so that the host never waits for a GPU; a target that no rank has then has no logit.

    Returns:
        The loss, a scalar or (T,).

    Raises:
        ValueError: a shape, device or number does not fit, a kept target is in no part or in several, or there is no process group.
        TypeError: a dtype is not supported.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "there is no process group; call torch.distributed.init_process_group, or linear_cross_entropy"
        )
    hidden, weight = in_autocast(hidden, weight)
    check_tensors(hidden, weight, target, weights)
    cap = check_numbers(z_loss, softcap, reduction)
    if first < 0:
        raise ValueError(f"first must be the id of the first row of weight, at least 0; got {first}")
    return _SplitLoss.apply(
        hidden, weight, target, weights, first, group, cap, ignore_index, z_loss, reduction, check_values
    )


class _SplitLoss(torch.autograd.Function):
    """A function rather than an op, since it talks to other ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        weights: Tensor | None,
        first: int,
        group: Any,
        softcap: float,
        ignore_index: int,
        z_loss: float,
        reduction: str,
        check: bool,
    ) -> Tensor:
        size = weight.shape[0]
        own = (target >= first) & (target < first + size)
        # Targets of other ranks stand at id 0, whose logit is left out again below.
        kept = kept_tokens(target, weights, ignore_index)
        ids = torch.where(kept, torch.where(own, target - first, 0), SKIPPED)
        losses, lse, *_ = forward_op(
            hidden, weight, ids, None, 0, size, None, softcap, SKIPPED, number(0.0), "none", False, False, False, check
        )
        lse, picked, owners = _exchange(lse, torch.where(own, lse - losses, 0.0), own & kept, group)
        if check:
            _check(target, kept, owners, weights)
        kept, factors = keep_tokens(target, weights, ignore_index, lse.dtype)
        if reduction == "mean":
            factors = factors * mean_scale(kept, weights, factors)
        lse = torch.where(kept, lse, 0.0)
        losses = torch.where(kept, factors * (lse - picked + z_loss * lse.square()), 0.0)
        ctx.save_for_backward(hidden, weight, ids, own, factors, lse)
        ctx.numbers = softcap, z_loss, group, check
        return losses if reduction == "none" else losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, own, factors, lse = ctx.saved_tensors
        softcap, z_loss, group, check = ctx.numbers
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        factor = torch.where(ids == SKIPPED, 0.0, grad.to(lse.dtype) * factors)
        d_hidden, d_weight = backward_op(
            hidden, weight, ids, factor * (1.0 + 2.0 * z_loss * lse), torch.where(own, factor, 0.0), lse, 0,
            weight.shape[0], None, softcap, needs_hidden, needs_weight, check,
        )  # fmt: skip
        if needs_hidden:
            # Each rank knows the part of its own ids; they are added in the dtype of sums.
            whole = d_hidden.to(lse.dtype)
            distributed.all_reduce(whole, group=group)
            d_hidden = whole.to(d_hidden.dtype)
        return d_hidden if needs_hidden else None, d_weight if needs_weight else None, *(None,) * 9


def _exchange(lse: Tensor, picked: Tensor, own: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exp, logit of the target and number of ranks that have it, of all ranks together, (T,) each."""
    part = torch.stack([lse, picked, own.to(lse.dtype)])  # (3, T)
    # Gathered and then added by each rank in the same order, so that all get the same bits.
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, part, group=group)
    lse, picked, owners = torch.stack(parts).unbind(1)  # (R, T)
    return lse.logsumexp(0), picked.sum(0), owners.sum(0)


def _check(target: Tensor, kept: Tensor, owners: Tensor, weights: Tensor | None) -> None:
    """Raise, on all ranks alike, when a weight is not sound or a kept target is not in exactly one part."""
    if weights is not None:
        check_weights(bool((torch.isfinite(weights) & (weights >= 0) | ~kept).all()))
    wrong = target[kept & (owners != 1)]
    if len(wrong):
        raise ValueError(
            f"target has the id {int(wrong[0])}, which is not in exactly one rank's part of the vocabulary; "
            "give each rank the first id of its rows"
        )
