"""How often predictions are right, how large logits get, and how large what enters the last norm: by kind of token.

A model whose modalities compete grows these long before its loss shows it (Chameleon, arXiv 2405.09818, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emu.model.predictions import Predictions
from emu.training.meters import PartSums
from emu.training.parallel import Ranks


class OutputNorm:
    """Keeps the root mean square of what enters the last norm of a transformer, of the batches for which it is asked.

    Args:
        norm: the last one.

    Attributes:
        wanted: whether that of the next batch is kept.
        last: (R, S) of the last such batch.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.wanted = False
        self.last: Tensor | None = None
        norm.register_forward_pre_hook(self._keep)

    @torch.no_grad()
    def _keep(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.last = arguments[0].float().square().mean(-1).sqrt() if self.wanted else None


class Measures:
    """Measures of predicted tokens by their kind.

    Args:
        kinds: their names; none where there is no vocabulary, and only the accuracy of all tokens is known.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self.names = tuple(kinds) or ("all",)
        self._right, self._norms = PartSums(self.names), PartSums(self.names)
        self._largest = torch.full((len(self.names),), -torch.inf, dtype=torch.float32)

    def add(self, predictions: Predictions, norms: Tensor | None, weights: Tensor, numbers: Tensor) -> None:
        """Add tokens.

        Args:
            predictions: of rows, tensors (R, S).
            norms: (R, S) of what entered the last norm at each token; None where that is not known.
            weights: (R, S), positive where a token is predicted.
            numbers: (R, S) number of the kind of each token; negative for none.
        """
        counted, numbers = (weights > 0).flatten(), numbers.flatten()
        self._right.add(predictions.right.flatten().float(), counted.float(), numbers)
        if norms is not None:
            self._norms.add(norms.flatten(), counted.float(), numbers)
        inside = counted & (numbers >= 0)
        largest = predictions.largest.flatten().masked_fill(~inside, -torch.inf)
        self._largest = self._largest.to(largest.device)
        self._largest = self._largest.scatter_reduce(0, numbers.clamp(min=0), largest, "amax")

    def gather(self, ranks: Ranks) -> None:
        """Put those of all ranks together; afterwards all hold the same."""
        for part in (self._right, self._norms):
            part.sums = ranks.sum(part.sums)
        self._largest = ranks.max(self._largest)

    def row(self) -> dict[str, float]:
        """accuracy of all tokens; accuracy/<kind>, largest_logit/<kind> and output_norm/<kind>."""
        right, counted = self._right.sums.sum(dim=1).tolist()
        if not counted:
            return {}
        row = {"accuracy": right / counted}
        row |= {f"accuracy/{name}": mean for name, mean in self._right.means().items() if len(self.names) > 1}
        named = zip(self.names, self._largest.tolist(), strict=True)
        row |= {f"largest_logit/{name}": value for name, value in named if value > -torch.inf}
        return row | {f"output_norm/{name}": mean for name, mean in self._norms.means().items()}

    def reset(self) -> None:
        """Forget all tokens."""
        self._right.reset()
        self._norms.reset()
        self._largest.fill_(-torch.inf)
