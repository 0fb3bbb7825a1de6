"""The seam between a training step and what it minimises.

    class Halved(NextToken):
        def loss(self, model, batch):
            parts = super().loss(model, batch)
            return parts._replace(loss=0.5 * parts.loss, metrics={"halved": parts.loss.detach()})

    emu fit --config digits --model.objective my_file.Halved

An objective of pairs, of groups or of a teacher overrides `weight` and `loss`; what it needs beside the model it makes in `setup`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from emu.model import EmuForCausalLM
from emu.model.predictions import Predictions
from emu.packing import Packed


class LossParts(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
        loss: () mean over what the batch weighs (`Objective.weight`), to differentiate.
        metrics: name -> () value without a graph, the same names on every rank and in every batch; NaN where a batch says nothing of it.
            Logged as train/<name>: the mean over the steps of a row, each batch that says something counting by its share of its step.
        token_losses: makes the (R, S) losses of the batch's tokens, as `emu.model.scoring.token_losses` does, for the curves by kind and
            by source; called in the steps that are logged. None where tokens have no loss of their own.
        predictions: likewise, what is predicted of them, as `emu.model.predictions.predictions_of_hidden` does; None where that is not
            known.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = {}
    token_losses: Callable[[], Tensor] | None = None
    predictions: Callable[[], Predictions] | None = None


class Objective:
    """What is minimised.

    An optimizer step takes several batches on several ranks, and its loss is one mean over all of them: each batch counts by its `weight`,
    which is asked for before the first of them is trained on. Random numbers that `loss` draws from torch's generator are those of the
    run's seed, the batch and the rank, so that a resumed run draws the same.
    """

    @property
    def keeps_start(self) -> bool:
        """Whether `setup` keeps the weights that training starts from, which a resumed run must then find again; by default where there is
        a `setup`."""
        return type(self).setup is not Objective.setup

    def setup(self, module: LightningModule) -> None:
        """Prepare for training; nothing by default.

        Called once, when `module.model` has the weights that training starts from (where `keeps_start` says that they are kept) and before
        a checkpoint is read: the place to keep a frozen copy of it.

        Args:
            module: the one that trains; its `trainer` knows the step.
        """

    def problems(self, trainer: Trainer) -> list[str]:
        """What keeps this objective from being trained by `trainer`, one sentence each; asked before the model is built."""
        return []

    def weight(self, batch: Packed) -> Tensor:
        """() how much a batch counts in its step, a function of the batch alone; by default the weight of its tokens."""
        return batch.loss_weights.sum()

    def loss(self, model: EmuForCausalLM, batch: Packed) -> LossParts:
        """The loss of a batch.

        Args:
            model: in training mode.
            batch: rows of this rank on the model's device, tensors (R, S), the weights of their tokens already those of `model.weighting`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, tensors and plain values; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; called after `setup`."""
