"""Which tokens of the loss share a slice of the vocabulary, found with one read of their values or none.

A read makes the host wait for the GPU, so everything that it has to know, how many tokens are kept and whether targets, weights and ranges
are in order, comes in one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Tokens that share one slice of the vocabulary; `index` None stands for all tokens in order.

    `kept` (T,) tells which of them have a loss; None stands for all of them.
    """

    index: Tensor | None
    num_tokens: int
    first: int
    count: int
    kept: Tensor | None = None

    def states(self, hidden: Tensor, rows: slice | Tensor) -> Tensor:
        """Gather hidden states (C, H), zeros for tokens that are skipped: 0 * NaN would carry what they hold into d weight."""
        found = hidden[rows]
        return found if self.kept is None else torch.where(self.kept[rows][:, None], found, 0.0)


def keep_tokens(target: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Find which tokens have a loss, (T,) bool, and the factor of each, (T,), zero where there is none; reads nothing."""
    kept = target != ignore_index
    if weights is None:
        return kept, kept.to(dtype)
    factors = torch.where(kept, weights.to(dtype), 0.0)
    return kept & (factors != 0), factors


def mean_scale(kept: Tensor, weights: Tensor | None, factors: Tensor) -> Tensor:
    """Return 1 over the sum of the weights of the kept tokens, their number without weights, and 0 without any; a scalar tensor."""
    # As a tensor: a Python number would make the host wait for the sum.
    total = kept.sum().to(factors.dtype) if weights is None else factors.sum()
    return torch.where(total == 0, 0.0, total.reciprocal())


def skipped_values(kept: Tensor, lse: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Give skipped tokens of an unread group the values that say so: log-sum-exp 0, most likely id -1 (if there are any)."""
    return torch.where(kept, lse, 0.0), torch.where(kept, best, -1) if len(best) else best


def token_groups(
    target: Tensor | None,
    kept: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    vocab_size: int,
    factors: Tensor | None = None,
    check: bool = True,
) -> list[Group]:
    """Group the tokens with a loss by their slice of the vocabulary; the host waits once, and not at all without `check`.

    Args:
        target: ids (T,), which are checked; None where they have been.
        kept: which tokens have a loss, (T,) bool.
        first, count: the slice of all tokens, unless each has its own in `ranges` (T, 2).
        vocab_size: number of ids.
        factors: weights of the tokens (T,), which are checked; None where there are none.
        check: False for one group of all tokens, unread.

    Raises:
        ValueError: a weight is negative or not finite, a range does not lie in the vocabulary, or a kept target not in its range.
    """
    if not check:
        return [Group(None, len(kept), first, count, kept)] if len(kept) else []
    sound = torch.ones_like(kept) if factors is None else torch.isfinite(factors) & (factors >= 0)
    if ranges is None:
        return _one_group(target, kept, sound, first, count)
    # Few numbers a token, and all that there is to know of ranges.
    columns = [kept, sound, *ranges.unbind(1), ranges[:, 0] if target is None else target]
    table = torch.stack([column.long() for column in columns], 1).cpu()
    check_weights(bool(table[:, 1].all()))
    rows = table[table[:, 0] != 0]
    if not len(rows):
        return []
    slices, inverse = torch.unique(rows[:, 2:4], dim=0, return_inverse=True)
    groups = []
    for number, (own_first, own_count) in enumerate(slices.tolist()):
        ids = rows[inverse == number, 4]
        _check_range(own_first, own_count, vocab_size)
        if target is not None:
            _check_targets(int(ids.min()), int(ids.max()), own_first, own_count)
        members = kept & (ranges[:, 0] == own_first) & (ranges[:, 1] == own_count)
        groups.append(Group(_places(members, len(ids)), len(ids), own_first, own_count))
    return groups


def _one_group(target: Tensor | None, kept: Tensor, sound: Tensor, first: int, count: int) -> list[Group]:
    ids = torch.full_like(kept, first, dtype=torch.int64) if target is None else torch.where(kept, target.long(), first)
    if not len(kept):
        return []
    num_kept, low, high, all_sound = torch.stack([kept.sum(), *ids.aminmax(), sound.all().long()]).tolist()
    check_weights(bool(all_sound))
    if num_kept == 0:
        return []
    _check_targets(low, high, first, count)
    return [Group(None if num_kept == len(kept) else _places(kept, num_kept), num_kept, first, count)]


def _places(mask: Tensor, number: int) -> Tensor:
    """Find the places of the `number` tokens in a mask, (number,)."""
    if mask.device.type in (
        "cpu",
        "cuda",
        "mps",
    ):  # elsewhere it does not exist; nonzero waits for the number that is known already
        return torch.nonzero_static(mask, size=number)[:, 0]
    return mask.nonzero()[:, 0]


def check_weights(sound: bool) -> None:
    """Raise unless all weights of tokens are sound."""
    if not sound:
        raise ValueError("weights must be finite and not negative at tokens with a target")


def _check_range(first: int, count: int, vocab_size: int) -> None:
    if first < 0 or count < 1 or first + count > vocab_size:
        found = (first, count)
        raise ValueError(f"vocab_range (first, number) = {found} does not lie in a vocabulary of {vocab_size} ids")


def _check_targets(low: int, high: int, first: int, count: int) -> None:
    if low < first or high >= first + count:
        raise ValueError(f"target must lie in {first}..{first + count - 1}, got ids from {low} to {high}")
