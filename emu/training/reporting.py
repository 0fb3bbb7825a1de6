"""What a run reports: rows of the training curves and of validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.predictions import Predictions
from emu.packing import Packed
from emu.training.flops import utilisation
from emu.training.meters import PartSums, StepMeter, TokenKinds, over_ranks
from emu.training.objectives.base import LossParts
from emu.training.parallel import Ranks
from emu.training.token_measures import Measures, OutputNorm


class Validation(NamedTuple):
    """Sums over the held-out documents: token losses by source and by kind of token, and predictions."""

    sources: PartSums
    kinds: PartSums
    measures: Measures


class Reporter(Callback):
    """Collects what happens in steps; writes a row of the curves every `log_every_n_steps` of them, and one after validation.

    It is a callback of the module that trains, so that rows are complete when a checkpoint is saved.

    Args:
        peak: operations a second of one device; None where MFU is not reported.
    """

    def __init__(self, peak: float | None = None) -> None:
        self._peak = peak
        self._config: EmuConfig | None = None
        self._adapters: int | None = None
        self.meter = StepMeter((), ())
        self.output_norm: OutputNorm | None = None
        self._measures = Measures(())
        self._kinds: TokenKinds | None = None
        self._ranks = Ranks()
        self._before_step: dict[str, Any] | None = None
        self._validation: Validation | None = None
        self._clock, self._paused, self._waited = 0.0, 0.0, 0.0
        self._done_before = (0.0, 0.0)  # tokens and operations of the open row that an earlier part of the run has seen
        self._rate, self._num_skipped = 0.0, 0

    def start(self, kinds: TokenKinds | None, sources: Sequence[str], ranks: Ranks) -> None:
        """Begin with empty sums.

        Args:
            kinds: of the vocabulary's tokens; None where there is no table.
            sources: names of the documents' sources.
            ranks: that see different rows.
        """
        self._kinds, self._ranks = kinds, ranks
        names = kinds.names if kinds else ()
        self.meter, self._measures = StepMeter(names, sources), Measures(names)

    def watch(self, model: EmuForCausalLM) -> None:
        """Measure what a model makes; called once it is built."""
        self._config, self.output_norm = model.config, OutputNorm(model.model.norm)
        learning = [weight.numel() for weight in model.parameters() if weight.requires_grad]
        self._adapters = sum(learning) if len(learning) < sum(1 for _ in model.parameters()) else None

    def begin_step(self, batches: int) -> None:
        """Keep the sums as they are before a step of several batches: a checkpoint inside of it holds those, and the weights before it."""
        self._before_step = copy.deepcopy(self.meter.state_dict()) if batches > 1 else None

    def measure_next(self, wanted: bool) -> None:
        """Say whether what enters the last norm is measured in the next batch that the model sees."""
        if self.output_norm is not None:
            self.output_norm.wanted = wanted

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
        self.meter.add_batch(parts.loss.detach() * share, batch)
        self.meter.add_metrics(parts.metrics, share)
        if logged and parts.token_losses is not None:
            self._add_tokens(parts.token_losses(), batch, self.meter.kinds, self.meter.sources)
        if logged and parts.predictions is not None:
            self._add_predictions(self._measures, parts.predictions(), batch)

    def end_step(self, gradient_norm: float, rate: float, num_skipped: int) -> None:
        """Add an optimizer step: the norm of its gradient, its learning rate, and how many were skipped so far."""
        self._before_step = None
        self._rate, self._num_skipped = rate, num_skipped
        self.meter.add_step(gradient_norm)

    def add_validation(self, losses: Tensor, predictions: Predictions, batch: Packed, sources: Sequence[str]) -> None:
        """Add token losses (R, S) and predictions of rows of held-out documents from these sources."""
        if self._validation is None:
            names = self._kinds.names if self._kinds is not None else ()
            self._validation = Validation(PartSums(sources or ("all",)), PartSums(names), Measures(names))
        found = self._validation
        self._add_tokens(losses, batch, found.kinds, found.sources)
        self._add_predictions(found.measures, predictions, batch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock, self._waited = time.perf_counter(), 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a row where one is due."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._write_row(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        self._write_row(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: speed is that of training."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self._clock += time.perf_counter() - self._paused

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log val/loss, the mean over all tokens, and losses and accuracies by source and by kind of token."""
        found, self._validation = self._validation, None
        if found is None or trainer.sanity_checking:
            return
        for part in (found.sources, found.kinds):
            part.sums = self._ranks.sum(part.sums)
        found.measures.gather(self._ranks)
        total, weight = found.sources.sums.sum(dim=1).tolist()
        row = {f"val/source_loss/{name}": mean for name, mean in found.sources.means().items()}
        row["val/loss"] = total / weight if weight else math.nan
        row |= {f"val/loss/{name}": mean for name, mean in found.kinds.means().items()}
        row |= {f"val/{name}": value for name, value in found.measures.row().items()}
        pl_module.log("val/loss", row["val/loss"], logger=False, sync_dist=trainer.world_size > 1)
        self._write(trainer, row)

    def snapshot(self) -> dict[str, Any]:
        """The sums of the open row over all ranks, for a checkpoint; all ranks must call this."""
        return over_ranks(self._before_step or self.meter.state_dict(), self._ranks)

    def go_on(self, state: Mapping[str, Any], *, first: bool) -> None:
        """Go on with the open row of a checkpoint, whose speed is that of the steps from here on.

        Args:
            state: see `snapshot`.
            first: whether this is the first rank, which keeps the sums of all.
        """
        self.meter.load_state_dict(state)
        self._done_before = self.meter.tokens, self._flops()
        if not first:
            self.meter.leave_to_others()

    def _flops(self) -> float:
        return 0.0 if self._config is None else self.meter.flops(self._config, self._adapters)

    def _write_row(self, trainer: Trainer) -> None:
        """Log what happened since the last row."""
        if self.meter.num_steps == 0:
            return
        self.meter.gather(self._ranks)
        self._measures.gather(self._ranks)
        now, waited = time.perf_counter(), getattr(trainer.train_dataloader, "waited", 0.0)
        seconds = max(1e-9, now - self._clock)
        row = self.meter.row() | self._measures.row()
        tokens, flops = self._done_before
        row["tokens_per_second"] = (self.meter.tokens - tokens) / seconds
        row["waiting"] = (waited - self._waited) / seconds
        if self._peak is not None and self._config is not None:
            row["mfu"] = utilisation(self._flops() - flops, seconds, self._ranks.number, self._peak)
        row["lr"] = self._rate
        row["skipped_steps"] = float(self._num_skipped)
        self._write(trainer, {f"train/{name}": value for name, value in row.items()})
        self._clock, self._waited, self._done_before = now, waited, (0.0, 0.0)
        self.meter.reset()
        self._measures.reset()

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

    def _add_predictions(self, measures: Measures, predictions: Predictions, batch: Packed) -> None:
        norms = None if self.output_norm is None else self.output_norm.last
        self.measure_next(False)
        if (
            norms is not None and norms.shape != batch.input_ids.shape
        ):  # of an objective that ran the model on other rows
            norms = None
        numbers = torch.zeros_like(batch.input_ids) if self._kinds is None else self._kinds(batch.input_ids)
        measures.add(predictions, norms, batch.loss_weights, numbers)
