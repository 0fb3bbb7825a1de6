"""How much each batch counts in its optimizer step, which may take several batches on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from emu.training.meters import TokenKinds, exact_dtype
from emu.training.weighting import LossWeighting, kind_totals, weigh


class StepWeights:
    """Weights of the tokens of an optimizer step, whose loss is one mean over all of its batches and ranks.

    Args:
        weighting: of the kinds of tokens.
        kinds: of the vocabulary; None where there is no table, and the documents' own weights count.
        batches: of a step, on each rank.
        group: process group of the ranks that see different rows.
        ranks: their number.
    """

    def __init__(
        self, weighting: LossWeighting, kinds: TokenKinds | None, batches: int, group: Any | None, ranks: int
    ) -> None:
        self._weighting = weighting
        self._kinds = None if weighting.changes_nothing else kinds
        self._batches, self._group, self._ranks = batches, group, ranks
        self._kind_totals: Tensor | None = None
        self._total: Tensor | None = None

    def start(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begin a step.

        Args:
            parts: ids and weights, each (R, S), of this rank's batches of the step.
        """
        # one batch is summed as ever; the sums of several must not depend on how rows are grouped
        dtype = parts[0][1].dtype if self._batches == 1 else exact_dtype(parts[0][1].device)
        if self._weighting.mean == "kinds" and (kinds := self._kinds) is not None:
            self._kind_totals = self._over_ranks([kind_totals(ids, weights, kinds).to(dtype) for ids, weights in parts])
        if self._batches * self._ranks > 1:
            self._total = self._over_ranks([self.weigh(ids, weights).sum().to(dtype) for ids, weights in parts])

    def weigh(self, ids: Tensor, weights: Tensor) -> Tensor:
        """(R, S) weights of a batch's tokens, from its ids and the weights of its documents, (R, S) each."""
        if self._kinds is None:
            return weights
        return weigh(ids, weights, self._kinds, self._weighting, self._kind_totals)

    def share(self, loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch to differentiate, and what it contributes to the loss of the step.

        Gradients are averaged over ranks and over a step's batches, which carry different weight: each mean is scaled by its share of all.

        Args:
            loss: () mean over the batch's tokens.
            weight: () their weight.
        """
        count = self._batches * self._ranks
        if count == 1:
            return loss, loss.detach()
        assert self._total is not None
        tiny = torch.finfo(self._total.dtype).tiny
        share = loss * (weight / self._total.clamp(min=tiny)).to(loss.dtype)
        return share * count, share.detach()

    def _over_ranks(self, sums: Sequence[Tensor]) -> Tensor:
        total = sums[0] if len(sums) == 1 else torch.stack(list(sums)).sum(dim=0)
        if self._ranks > 1:
            total = total.clone()
            dist.all_reduce(total, group=self._group)
        return total
