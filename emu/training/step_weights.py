"""How much each batch counts in its optimizer step, which may take several batches on several ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emu.packing import Packed
from emu.training.meters import TokenKinds, exact_dtype
from emu.training.objectives.base import Objective
from emu.training.parallel import Ranks
from emu.training.weighting import LossWeighting, kind_totals, weigh


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
