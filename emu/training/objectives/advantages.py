"""From rewards of groups to what each drawn token is credited with."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Baseline = Literal["leave_one_out", "mean"]
Credit = Literal["plain", "contrast"]


class GroupAdvantages(NamedTuple):
    """What groups of rewards say.

    Attributes:
        values: (P, G) float64 advantages; 0 in groups that are left out.
        is_unscored: (P,) bool groups that hold a NaN.
        is_constant: (P,) bool other groups whose rewards are all equal: nothing can be learned from them.
    """

    values: Tensor
    is_unscored: Tensor
    is_constant: Tensor

    @property
    def used(self) -> Tensor:
        """(P,) bool groups that are learned from."""
        return torch.logical_not(self.is_unscored | self.is_constant)


def group_advantages(rewards: Tensor, baseline: Baseline, divide_by_deviation: bool) -> GroupAdvantages:
    """Advantages within groups of G answers to one prompt.

    "leave_one_out" subtracts the mean of the other G - 1 rewards (Kool, van Hoof and Welling 2019; RLOO, arXiv 2402.14740), which keeps
    the gradient that of the expected reward. "mean" subtracts the mean of all (GRPO, arXiv 2402.03300): the same direction, shorter by
    (G - 1) / G. Division by the group's deviation (GRPO; n - 1 in its variance, as TRL has it) weighs prompts by how sure the model is
    of them, so that it follows another gradient (arXiv 2503.20783, section 3.1).

    Args:
        rewards: (P, G) float64, NaN where there is no score.
    """
    size = rewards.shape[1]
    unscored = rewards.isnan().any(1)
    known = torch.where(unscored[:, None], 0.0, rewards)
    constant = torch.logical_not(unscored) & (known == known[:, :1]).all(1)
    mean = known.mean(1, keepdim=True)
    values = (known - mean) * (size / (size - 1) if baseline == "leave_one_out" else 1.0)
    if divide_by_deviation:
        values = values / known.std(1, keepdim=True).clamp(min=torch.finfo(known.dtype).tiny)
    out = unscored | constant
    return GroupAdvantages(torch.where(out[:, None], 0.0, values), unscored, constant)


def token_credit(advantages: Tensor, contrast: Tensor, credit: Credit) -> Tensor:
    """(N, T) what each code of N sequences is credited with.

    Args:
        advantages: (N,) of the sequences.
        contrast: (N, T) log-probability of each code given the prompt minus that given the negative prompt.
        credit: "plain" gives every code its sequence's advantage, as REINFORCE does. "contrast" shares it out by how much the prompt
            speaks for each code, |contrast| over the sequence's mean of it (after the guidance-contrastive advantage of arXiv 2605.29198):
            codes that the prompt says nothing about are left as they are. It is no longer the gradient of the expected reward.
    """
    plain = advantages[:, None].expand(contrast.shape)
    if credit == "plain":
        return plain
    weight = contrast.abs()
    mean = weight.mean(1, keepdim=True)
    return plain * torch.where(mean > 0, weight / mean.clamp(min=torch.finfo(mean.dtype).tiny), 1.0)
