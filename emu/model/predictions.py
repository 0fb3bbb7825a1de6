"""What a model predicts of each token of packed rows: whether it is right, and how large its logits get."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emu.model.loss import next_targets
from emu.packing import IGNORE_INDEX, Packed

MOST_LOGITS = 2**24
"""That are held at a time."""


class Predictions(NamedTuple):
    """Predictions of the tokens of packed rows; false and 0 where nothing is predicted, as in `emu.model.scoring.token_losses`.

    Attributes:
        right: (R, S) bool, whether token [r, s] has the largest logit where it is predicted.
        largest: (R, S) float32, that logit.
    """

    right: Tensor
    largest: Tensor


@torch.no_grad()
def predictions_of_hidden(hidden: Tensor, head: Tensor, packed: Packed) -> Predictions:
    """Predictions for rows that the model has seen already; logits are made for a few tokens at a time.

    Args:
        hidden: (R, S, hidden) final hidden states of the rows.
        head: (vocab_size, hidden).
        packed: the rows, tensors (R, S).
    """
    targets, _ = next_targets(packed.labels, packed.loss_weights, packed.segment_ids)
    flat = targets.flatten()
    places = (flat != IGNORE_INDEX).nonzero()[:, 0]
    right = torch.zeros(len(flat), dtype=torch.bool, device=hidden.device)
    largest = torch.zeros(len(flat), dtype=torch.float32, device=hidden.device)
    for some in places.split(max(1, MOST_LOGITS // len(head))):
        values, ids = F.linear(hidden.flatten(0, 1)[some], head.to(hidden.dtype)).max(dim=-1)
        right[some] = ids == flat[some]
        largest[some] = values.float()
    # A position predicts its successor.
    return Predictions(*(part.view_as(targets).roll(1, dims=1) for part in (right, largest)))
