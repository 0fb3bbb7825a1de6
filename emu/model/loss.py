"""Next-token loss of packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from emu.packing import IGNORE_INDEX
from emu_kernels import linear_cross_entropy


def next_token_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    segment_ids: Tensor | None = None,
    z_loss: float = 0.0,
    divisor: Tensor | float | None = None,
) -> Tensor:
    """Weighted mean cross-entropy of each token given what stands before it in its segment.

    Args:
        hidden: (B, S, hidden).
        head: (vocab_size, hidden).
        labels: (B, S) int64; `labels[b, i]` is predicted from `hidden[b, i - 1]`, `IGNORE_INDEX` is not predicted.
        weights: (B, S) weight of the prediction of each token.
        segment_ids: (B, S); the first token of a segment, and segment 0, are not predicted.
        z_loss: weight of the squared log-partition.
        divisor: of the summed loss; the sum of the weights of the predicted tokens by default.

    Returns:
        () in the dtype of the hidden states or float32, whichever is wider; 0 when nothing is predicted.
    """
    target, scale = next_targets(labels, weights, segment_ids)
    loss: Tensor = linear_cross_entropy(  # type: ignore[assignment]
        hidden.flatten(0, 1),
        head,
        target.flatten(),
        weights=scale,
        z_loss=z_loss,
        ignore_index=IGNORE_INDEX,
        reduction="mean" if divisor is None else "sum",
    )
    return loss if divisor is None else loss / divisor


def next_targets(labels: Tensor, weights: Tensor | None, segment_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What each position predicts: (B, S) ids with `IGNORE_INDEX` where nothing is, and the flat (B * S,) weights.

    Tokens of weight 0 are left out: they change neither loss nor gradient, and the product with the head skips them.
    """
    target = torch.full_like(labels, IGNORE_INDEX)
    target[:, :-1] = labels[:, 1:]
    if segment_ids is not None:
        here, there = segment_ids[:, :-1], segment_ids[:, 1:]
        target[:, :-1].masked_fill_((here != there) | (there == 0), IGNORE_INDEX)
    if weights is None:
        return target, None
    scale = torch.zeros_like(weights)
    scale[:, :-1] = weights[:, 1:]
    target.masked_fill_(scale == 0, IGNORE_INDEX)
    return target, scale.flatten()
