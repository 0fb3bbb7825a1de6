"""Next-token prediction, the objective of pretraining and of fine-tuning."""

from __future__ import annotations

from emu.model import EmuForCausalLM
from emu.model.predictions import predictions_of_hidden
from emu.model.scoring import losses_of_hidden
from emu.packing import Packed
from emu.training.objectives.base import LossParts, Objective


class NextToken(Objective):
    """Cross-entropy of each token given what stands before it in its document; which tokens count is said by their weights."""

    def loss(self, model: EmuForCausalLM, batch: Packed) -> LossParts:
        """The weighted mean over the tokens of packed rows (R, S), with the model's z-loss."""
        out = model(
            input_ids=batch.input_ids,
            labels=batch.labels,
            loss_weights=batch.loss_weights,
            segment_ids=batch.segment_ids,
            return_hidden=True,
        )
        hidden = out.hidden_states[-1].detach()
        return LossParts(
            out.loss,
            token_losses=lambda: losses_of_hidden(hidden, model.lm_head.weight.detach(), batch),
            predictions=lambda: predictions_of_hidden(hidden, model.lm_head.weight.detach(), batch),
        )
