"""How much tokens count in the loss, by the part of the vocabulary that they are of, and batches in their optimizer step.

A step may take several batches on several ranks; each counts by its share of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from emu.packing import Packed
from emu.training.meters import TokenKinds, exact_dtype
from emu.training.objectives.base import Objective
from emu.training.parallel import Ranks


@dataclass(frozen=True)
class LossWeighting:
    """Weights of the tokens of each kind, on top of the weights that the documents carry.

    Attributes:
        kinds: kind -> factor; kinds are "text", "control" and the names of the codebooks, e.g. "vision". 1 where a kind is not named.
            Emu3 trains with 0.5 on vision tokens (arXiv 2409.18869, section 2.3).
        mean: "tokens", one mean over all tokens of a step, or "kinds", the mean of the kinds' own means, each times its factor: then a step
            with many codes and few words listens to both alike. Either is taken over the whole optimizer step, all of its accumulated
            batches and all ranks together.
    """

    kinds: dict[str, float] = field(default_factory=dict)
    mean: Literal["tokens", "kinds"] = "tokens"

    @property
    def changes_nothing(self) -> bool:
        """Whether documents' own weights are used as they are."""
        return self.mean == "tokens" and all(factor == 1 for factor in self.kinds.values())

    def problems(self) -> list[str]:
        """What is wrong with the numbers, one sentence each."""
        bad = {kind: factor for kind, factor in self.kinds.items() if not (factor >= 0 and math.isfinite(factor))}
        return [f"weighting.kinds.{kind} is {factor}; expected 0 or more" for kind, factor in bad.items()]

    def check(self, kinds: TokenKinds | None) -> None:
        """Refuse kinds that the vocabulary does not have.

        Raises:
            ValueError: there are such kinds, or no vocabulary that knows the kinds.
        """
        known = kinds.names if kinds is not None else ()
        unknown = sorted(set(self.kinds) - set(known))
        if unknown or (kinds is None and not self.changes_nothing):
            raise ValueError(
                f"model.weighting names {unknown or 'kinds'}; the vocabulary has the kinds {', '.join(known) or 'none'}"
            )


def weigh(
    ids: Tensor, weights: Tensor, kinds: TokenKinds, weighting: LossWeighting, totals: Tensor | None = None
) -> Tensor:
    """Weights of the tokens of a batch under a weighting.

    Args:
        ids: (R, S) int64.
        weights: (R, S) float32 that the documents carry.
        kinds: of the vocabulary.
        weighting: the factors.
        totals: (K,) weight of each kind in the whole optimizer step, over its batches and ranks; that of this batch by default.

    Returns:
        (R, S) weights. With `mean="kinds"` the weights of each kind that occurs in the step add up to its factor times the step's number
        of weighted tokens over the number of kinds, so that losses of both means are alike in size.
    """
    numbers = kinds(ids).clamp(min=0)
    factors = torch.tensor([weighting.kinds.get(name, 1.0) for name in kinds.names], device=weights.device)
    if weighting.mean == "kinds":
        sums = kind_totals(ids, weights, kinds) if totals is None else totals
        present = (sums > 0).sum().clamp(min=1)
        factors = factors * sums.sum() / (present * sums.clamp(min=torch.finfo(sums.dtype).tiny))
        factors = torch.where(sums > 0, factors, 0.0)
    return (weights * factors[numbers]).to(weights.dtype)


def kind_totals(ids: Tensor, weights: Tensor, kinds: TokenKinds) -> Tensor:
    """(K,) weight of the tokens of each kind, of ids and weights (R, S); ids without an owner count as text."""
    numbers = kinds(ids).clamp(min=0)
    sums = torch.zeros(len(kinds.names), dtype=weights.dtype, device=weights.device)
    return sums.index_add_(0, numbers.flatten(), weights.flatten())


class StepWeights:
    """Weights of the batches of an optimizer step, whose loss is one mean over all of them, and of their tokens.

    Args:
        objective: says what a batch weighs.
        weighting: of the kinds of tokens.
        kinds: of the vocabulary; None where there is no table, and the documents' own weights count.
        batches: of a step, on each rank.
        ranks: that see different rows.
    """

    def __init__(
        self, objective: Objective, weighting: LossWeighting, kinds: TokenKinds | None, batches: int, ranks: Ranks
    ) -> None:
        self._objective, self._weighting = objective, weighting
        self._kinds = None if weighting.changes_nothing else kinds
        self._batches, self._ranks = batches, ranks
        self._kind_totals: Tensor | None = None
        self._total: Tensor | None = None

    @property
    def count(self) -> int:
        """Batches of a step, over all ranks."""
        return self._batches * self._ranks.number

    def start(self, parts: Sequence[Packed]) -> None:
        """Begin a step.

        Args:
            parts: this rank's batches of the step, tensors (R, S).
        """
        weights = parts[0].loss_weights
        # one batch is summed as ever; the sums of several must not depend on how rows are grouped
        dtype = weights.dtype if self._batches == 1 else exact_dtype(weights.device)
        if self._weighting.mean == "kinds" and (kinds := self._kinds) is not None:
            self._kind_totals = self._sum([kind_totals(p.input_ids, p.loss_weights, kinds).to(dtype) for p in parts])
        if self.count > 1:
            self._total = self._sum([self._objective.weight(self.weigh(part)).to(dtype) for part in parts])

    def weigh(self, batch: Packed) -> Packed:
        """A batch with the weights of its tokens (R, S), from its ids and the weights of its documents."""
        if self._kinds is None:
            return batch
        weights = weigh(batch.input_ids, batch.loss_weights, self._kinds, self._weighting, self._kind_totals)
        return batch._replace(loss_weights=weights)

    def share(self, batch: Packed) -> Tensor:
        """() share of a weighed batch in the weight of its step."""
        weight = self._objective.weight(batch)
        if self._total is None:
            return torch.ones_like(weight)
        return weight / self._total.clamp(min=torch.finfo(self._total.dtype).tiny)

    def _sum(self, sums: Sequence[Tensor]) -> Tensor:
        """Over this rank's batches and over the ranks."""
        return self._ranks.sum(sums[0] if len(sums) == 1 else torch.stack(list(sums)).sum(dim=0))
