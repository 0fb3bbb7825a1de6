"""Stopping by held-out bits: a model that begins to learn its documents by heart is taken as it was before."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emu.stopping import say


class KeepBest(Callback):
    """Keeps the weights with the least `val/loss`, and ends the run when it has not fallen for some validations.

    The weights are part of the checkpoints, so that a resumed run keeps the same ones. They are what is exported; the last checkpoint
    holds the last weights as well.

    Args:
        patience: validations without a new least loss after which training ends; 0 never ends it early.
    """

    def __init__(self, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience is {patience}; expected 0 or more")
        self.patience = patience
        self.least, self.step, self.worse, self.seen = math.inf, 0, 0, 0
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that had ended."""
        self._stop_when_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare; keep a copy of the weights where they are better."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None or trainer.sanity_checking or trainer.global_step <= self.seen:
            return  # after a stop the last validation is made again
        self.seen = trainer.global_step
        if float(loss) < self.least:
            self.least, self.step, self.worse = float(loss), trainer.global_step, 0
            self._weights = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
        else:
            self.worse += 1
        self._stop_when_due(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights into the model."""
        if self._is_owed(trainer):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        if self._weights and not trainer.interrupted:
            with torch.no_grad():
                pl_module.load_state_dict(self._weights)
            pl_module.weight_average = None  # type: ignore[assignment]  # those weights are what was validated, an average too where there is one
            if trainer.is_global_zero:
                bits = self.least / math.log(2)
                say(f"the weights of step {self.step} are the best on held-out documents: {bits:.3f} bits a token")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "least": self.least,
            "step": self.step,
            "worse": self.worse,
            "seen": self.seen,
            "weights": self._weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.least, self.step = float(state_dict["least"]), int(state_dict["step"])
        self.worse, self.seen = int(state_dict["worse"]), int(state_dict["seen"])
        self._weights = dict(state_dict["weights"])

    def _is_owed(self, trainer: Trainer) -> bool:
        """Whether a run ended after its last step and before the validation of it, and Lightning, with nothing to train, left that out."""
        every = trainer.val_check_interval
        batches = trainer.global_step * trainer.accumulate_grad_batches  # of which the interval is
        due = isinstance(every, int) and every > 0 and batches > 0 and batches % every == 0
        return due and self.seen < trainer.global_step and trainer.enable_validation and not trainer.interrupted

    def _stop_when_due(self, trainer: Trainer) -> None:
        if self.patience and self.worse >= self.patience:
            trainer.should_stop = True
