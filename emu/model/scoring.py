"""The loss of each token of packed rows, one by one: what training curves, validation, evaluation and objectives ask for."""

from __future__ import annotations

from torch import Tensor

from emu.model.loss import next_targets
from emu.model.model import EmuForCausalLM
from emu.packing import IGNORE_INDEX, Packed
from emu_kernels import linear_cross_entropy


def token_losses(model: EmuForCausalLM, packed: Packed) -> Tensor:
    """Negative log-likelihood of each token of packed rows given what stands before it in its document.

    Logits of the whole vocabulary are never held: they are made for a few tokens at a time, and again in the backward pass. The model
    runs in the mode (training or evaluation) that it is in.

    Args:
        model: the transformer.
        packed: rows on the model's device, tensors (R, S).

    Returns:
        (R, S) float32, float64 for a float64 model: nats of the prediction of token [r, s], differentiable in the model's parameters.
        0 where nothing is predicted: in padding, at the first token of each document, and at tokens of weight 0. The weights are not
        multiplied in.
    """
    out = model(input_ids=packed.input_ids, segment_ids=packed.segment_ids, return_hidden=True)
    return losses_of_hidden(out.hidden_states[-1], model.lm_head.weight, packed)


def losses_of_hidden(hidden: Tensor, head: Tensor, packed: Packed) -> Tensor:
    """`token_losses` for rows that the model has seen already.

    Args:
        hidden: (R, S, hidden) final hidden states of the rows.
        head: (vocab_size, hidden).
        packed: the rows, tensors (R, S).
    """
    targets, _ = next_targets(packed.labels, packed.loss_weights, packed.segment_ids)
    losses: Tensor = linear_cross_entropy(  # type: ignore[assignment]
        hidden.flatten(0, 1), head, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    # A position predicts its successor; the last one predicts nothing, so that its 0 may become that of the first token.
    return losses.view_as(targets).roll(1, dims=1)
