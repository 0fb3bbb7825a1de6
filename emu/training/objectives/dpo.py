"""Direct preference optimisation on pairs of stored token sequences, with Emu3's next-token term.

    emu rank candidates --reward my_file.reward --output ranked
    emu fit --config shapes-dpo --data.pairs ranked/pairs.jsonl

A document of the batch is a pair: the better sequence and, from its own BOS on, the other one (`emu.data.preferences`). Nothing is
tokenized again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from emu.model import EmuForCausalLM
from emu.model.scoring import token_losses
from emu.packing import Packed
from emu.training.objectives.base import LossParts, Objective
from emu.training.objectives.frozen_reference import FrozenReference, without_dropout


class DPO(Objective):
    """-log sigmoid(beta * margin) + next_token * loss of the better sequence, a mean over pairs.

    The margin is how much more than the reference the model prefers the better sequence: the difference of the two log-ratios, each summed
    over the tokens with weight (arXiv 2305.18290, equation 7). Log-probabilities are those of the whole vocabulary, without guidance: pairs
    need not be drawn by the model that trains. The next-token term is the mean over the better sequence's tokens, as Emu3 adds it to keep
    the model from unlearning what it prefers (arXiv 2409.18869, section 2.4.2; Emu3 states no weights).

    Args:
        beta: how strongly the model is kept near the reference.
        next_token: weight of the next-token loss of the better sequences; 0 is plain DPO.
        reference: folder of the reference model; the weights that training starts from by default, of a model with adapters those without
            them.
    """

    def __init__(self, beta: float = 0.1, next_token: float = 1.0, reference: str | None = None) -> None:
        self.beta, self.next_token, self.reference_folder = beta, next_token, reference

    @property
    def keeps_start(self) -> bool:
        """See `Objective`: where they are the reference."""
        return self.reference_folder is None

    def setup(self, module: LightningModule) -> None:
        """Keep the reference."""
        assert isinstance(module.model, EmuForCausalLM)
        begin = module.model.config.bos_token_id
        assert begin is not None
        self._begin = int(begin)
        self._reference = FrozenReference(module, self.reference_folder)

    def problems(self, trainer: Trainer) -> list[str]:
        """What is wrong with the numbers; one sentence each."""
        found = []
        if not 0 < self.beta < float("inf"):
            found.append(f"objective.beta is {self.beta}; expected more than 0")
        if not 0 <= self.next_token < float("inf"):
            found.append(f"objective.next_token is {self.next_token}; expected 0 or more")
        return found

    def weight(self, batch: Packed) -> Tensor:
        """() number of pairs."""
        return batch.segment_ids.max(dim=1).values.sum().to(batch.loss_weights.dtype)

    def loss(self, model: EmuForCausalLM, batch: Packed) -> LossParts:
        """The mean over the pairs of packed rows (R, S).

        Raises:
            ValueError: a document is not a pair of sequences that begin with BOS.
        """
        pairs = int(self.weight(batch))
        apart, sequences = self._apart(batch)
        with without_dropout(model):
            losses = token_losses(model, apart)
        with self._reference.model(model) as reference:
            theirs = token_losses(reference, apart)
        chosen, rejected = _sums(losses, apart, sequences, pairs)
        lengths = _sums((apart.loss_weights > 0).to(losses), apart, sequences, pairs)[0].clamp(min=1)
        gains = [
            before - now for now, before in zip((chosen, rejected), _sums(theirs, apart, sequences, pairs), strict=True)
        ]
        margin = self.beta * (gains[0] - gains[1])
        next_token = (chosen / lengths).sum() / max(1, pairs)
        preference = -F.logsigmoid(margin).sum() / max(1, pairs)
        metrics = {
            "preference_loss": preference,
            "next_token_loss": next_token,
            "margin": margin.sum() / max(1, pairs),
            "accuracy": (margin > 0).to(margin).sum() / max(1, pairs),
            "chosen_gain": gains[0].sum() / max(1, pairs),
            "rejected_gain": gains[1].sum() / max(1, pairs),
        }
        told = {name: value.detach() for name, value in metrics.items()}
        return LossParts(preference + self.next_token * next_token, told, losses.detach)

    def _apart(self, batch: Packed) -> tuple[Packed, Tensor]:
        """The batch with a segment for each sequence, and the number of the sequence (R, S) in the batch, -1 in padding."""
        exists = batch.segment_ids > 0
        begins = exists & (batch.input_ids == self._begin)
        segments = torch.where(exists, begins.long().cumsum(1), 0)
        counts = begins.sum(1)
        if not torch.equal(counts, 2 * batch.segment_ids.max(dim=1).values):
            raise ValueError(
                f"documents of a batch hold {counts.tolist()} sequences in {batch.segment_ids.max(dim=1).values.tolist()} pairs a row; "
                "train this objective on pairs, of emu.data.preferences.PreferenceData"
            )
        before = counts.cumsum(0) - counts
        weights = torch.where(begins, 0.0, batch.loss_weights)
        return batch._replace(segment_ids=segments, loss_weights=weights), torch.where(
            exists, segments - 1 + before[:, None], -1
        )


def _sums(values: Tensor, batch: Packed, sequences: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """(pairs,) sums of values (R, S) over the tokens with weight of the better sequences, and of the others."""
    weighed = (sequences >= 0) & (batch.loss_weights > 0)
    sums = values.new_zeros(2 * pairs).index_add(0, sequences[weighed], values[weighed])
    better, other = sums.unflatten(0, (pairs, 2)).unbind(1)
    return better, other
