"""What a run reports: rows of the training curves and of validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emu.packing import Packed
from emu.training.meters import PartSums, StepMeter, TokenKinds
from emu.training.objectives.base import LossParts
from emu.training.parallel import Ranks


class Reporter(Callback):
    """Collects what happens in steps; writes a row of the curves every `log_every_n_steps` of them, and one after validation.

    It is a callback of the module that trains, so that rows are complete when a checkpoint is saved.
    """

    def __init__(self) -> None:
        self.meter = StepMeter((), ())
        self._kinds: TokenKinds | None = None
        self._ranks = Ranks()
        self._before_step: dict[str, Any] | None = None
        self._validation: PartSums | None = None
        self._clock = 0.0
        self._rate, self._num_skipped = 0.0, 0

    def start(self, kinds: TokenKinds | None, sources: Sequence[str], ranks: Ranks) -> None:
        """Begin with empty sums.

        Args:
            kinds: of the vocabulary's tokens; None where there is no table.
            sources: names of the documents' sources.
            ranks: that see different rows.
        """
        self._kinds, self._ranks = kinds, ranks
        self.meter = StepMeter(kinds.names if kinds else (), sources)

    def begin_step(self, batches: int) -> None:
        """Keep the sums as they are before a step of several batches: a checkpoint inside of it holds those, and the weights before it."""
        self._before_step = copy.deepcopy(self.meter.state_dict()) if batches > 1 else None

    @torch.no_grad()
    def add_batch(self, batch: Packed, parts: LossParts, share: Tensor, logged: bool) -> None:
        """Add a batch of a step.

        Args:
            batch: rows (R, S), weighed.
            parts: what the objective made of it.
            share: () of the batch in its step.
            logged: whether a row is written after this step. The losses of single tokens cost one more product with the head, which is why
                the steps between two rows do without.
        """
        self.meter.add_batch(parts.loss.detach() * share, batch.segment_ids)
        self.meter.add_metrics(parts.metrics, share)
        if logged and parts.token_losses is not None:
            self._add_tokens(parts.token_losses(), batch, self.meter.kinds, self.meter.sources)

    def end_step(self, gradient_norm: float, rate: float, num_skipped: int) -> None:
        """Add an optimizer step: the norm of its gradient, its learning rate, and how many were skipped so far."""
        self._before_step = None
        self._rate, self._num_skipped = rate, num_skipped
        self.meter.add_step(gradient_norm)

    def add_validation(self, losses: Tensor, batch: Packed, sources: Sequence[str]) -> None:
        """Add the token losses (R, S) of rows of held-out documents from these sources."""
        if self._validation is None:
            self._validation = PartSums(sources or ("all",))
        self._add_tokens(losses, batch, None, self._validation)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a row where one is due."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._write_row(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        self._write_row(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log val/loss, the mean over all tokens, and val/source_loss/<source>."""
        sums, self._validation = self._validation, None
        if sums is None or trainer.sanity_checking:
            return
        sums.sums = self._ranks.sum(sums.sums)
        total, weight = sums.sums.sum(dim=1).tolist()
        row = {f"val/source_loss/{name}": mean for name, mean in sums.means().items()}
        row["val/loss"] = total / weight if weight else math.nan
        pl_module.log("val/loss", row["val/loss"], logger=False, sync_dist=trainer.world_size > 1)
        self._write(trainer, row)

    def snapshot(self) -> dict[str, Any]:
        """The sums of the open row, for a checkpoint."""
        return self._before_step or self.meter.state_dict()

    def _write_row(self, trainer: Trainer) -> None:
        """Log what happened since the last row."""
        if self.meter.num_steps == 0:
            return
        self.meter.gather(self._ranks)
        now = time.perf_counter()
        row = self.meter.row()
        row["tokens_per_second"] = self.meter.tokens / max(1e-9, now - self._clock)
        row["lr"] = self._rate
        row["skipped_steps"] = float(self._num_skipped)
        self._write(trainer, {f"train/{name}": value for name, value in row.items()})
        self._clock = now
        self.meter.reset()

    def _write(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), step=trainer.global_step)

    def _add_tokens(self, losses: Tensor, batch: Packed, kinds: PartSums | None, sources: PartSums) -> None:
        """Add the loss of each predicted token, of (R, S), to the sums of its kind and of its source."""
        losses, weights = losses.flatten(), batch.loss_weights.flatten()
        if kinds is not None and self._kinds is not None:
            kinds.add(losses, weights, self._kinds(batch.input_ids.flatten()))
        if sources.names:
            sources.add(losses, weights, batch.source_ids.flatten())
