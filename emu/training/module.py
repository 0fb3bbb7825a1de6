"""Training of the transformer under Lightning: next-token prediction over packed rows."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.scoring import losses_of_hidden, token_losses
from emu.packing import Packed
from emu.randomness import derive_key
from emu.training.meters import PartSums, StepMeter, TokenKinds
from emu.training.parallel import is_sharded, number_as_model, shard
from emu.training.schedules import OptimizerOptions, build_optimizer
from emu.training.step_weights import StepWeights
from emu.training.vocabularies import check_vocabulary, fingerprint, with_vocabulary
from emu.training.weighting import LossWeighting
from emu.vocabulary import Vocabulary
from emu_tokenizers.resuming import check_weights


class EmuModule(LightningModule):
    """An `EmuForCausalLM` in training.

    The model is built by `configure_model`, when the data module's vocabulary is known: its size and special ids go into the model's
    configuration, so that a recipe need not repeat them. Nothing is stored as hyperparameters; the run's `config.yaml` is the record.

    An optimizer step takes `trainer.accumulate_grad_batches` batches on every rank. Its loss is one mean over all of their tokens: a batch
    counts by its share of the step's weight, which the loader knows before the first of them is trained on (`StepLoader.step_parts`).

    Args:
        config: size and options of a new model.
        pretrained: folder of a model to start from instead.
        optimizer: learning rate, schedule and weight decay.
        weighting: how much text, controls and each modality's codes count in the loss.
        max_grad_norm: gradients are scaled down to this norm.
        max_skipped_steps: steps with a gradient that is not finite change nothing; so many of them in a row end the run.

    Attributes:
        model: the transformer, None before `configure_model`.
        num_skipped: steps skipped so far.
    """

    def __init__(
        self,
        config: EmuConfig | None = None,
        pretrained: str | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008 (frozen)
        weighting: LossWeighting = LossWeighting(),  # noqa: B008 (frozen)
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        self.config = config
        self.pretrained = pretrained
        self.optimizer_options = optimizer
        self.weighting = weighting
        self.max_grad_norm = max_grad_norm
        self.max_skipped_steps = max_skipped_steps
        self.model: EmuForCausalLM | None = None
        self.num_skipped = 0
        self._skipped_in_a_row = 0
        self._kinds: TokenKinds | None = None
        self._meter: StepMeter | None = None
        self._validation: PartSums | None = None
        self._step_weights: StepWeights | None = None
        self._before_step: dict[str, Any] | None = None
        self._clock = 0.0
        self._rate = 0.0
        self._noise_seed = torch.initial_seed()

    # Building

    def configure_model(self) -> None:
        """Build the model, once."""
        if self.model is not None:
            return
        vocabulary = getattr(getattr(self._trainer, "datamodule", None), "vocabulary", None)
        if self.pretrained is not None:
            self.model = EmuForCausalLM.from_pretrained(self.pretrained, dtype=torch.float32)
            self.config = self.model.config
            check_vocabulary(self.config, vocabulary)
        else:
            assert self.config is not None
            self.config = self.config if vocabulary is None else with_vocabulary(self.config, vocabulary)
            self.model = EmuForCausalLM(self.config)
        self.model.train()
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    def configure_optimizers(self) -> Any:
        """AdamW, its rate set step by step."""
        assert self.model is not None
        total = self.optimizer_options.total_steps or max(1, self.trainer.max_steps)
        optimizer, schedule = build_optimizer(self.model, self.optimizer_options, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """The curves are written by a callback, so that they are complete when a checkpoint is saved."""
        return [_WriteRows(self)]

    def problems(self, trainer: Trainer) -> list[str]:
        """Everything that keeps this module from being trained by `trainer`, one sentence each."""
        found = self.optimizer_options.problems(trainer.max_steps) + self.weighting.problems()
        if (self.config is None) == (self.pretrained is None):
            found.append("give either model.config, for a new model, or model.pretrained, to start from a trained one")
        if not self.max_grad_norm > 0:
            found.append(f"max_grad_norm is {self.max_grad_norm}; expected a positive number (inf for no limit)")
        if self.max_skipped_steps < 1:
            found.append(f"max_skipped_steps is {self.max_skipped_steps}; expected 1 or more")
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            found.append(
                "trainer.callbacks changes the accumulation from epoch to epoch; set trainer.accumulate_grad_batches instead"
            )
        if getattr(trainer.strategy, "_save_distributed_checkpoint", False):
            found.append(
                "trainer.strategy.init_args.save_distributed_checkpoint is true; checkpoints are one file, set it to false"
            )
        if trainer.gradient_clip_val is not None:
            found.append("trainer.gradient_clip_val is set; this module clips by itself, use model.max_grad_norm")
        return found

    # Steps

    def forward(self, batch: Packed) -> Any:
        """The model's output, with the loss, for packed rows of tensors (R, S)."""
        assert self.model is not None
        return self.model(
            input_ids=batch.input_ids,
            labels=batch.labels,
            loss_weights=batch.loss_weights,
            segment_ids=batch.segment_ids,
            return_hidden=True,
        )

    def on_fit_start(self) -> None:
        """Prepare the curves; a checkpoint may have loaded them already."""
        self._start_meters()
        self._clock = time.perf_counter()

    def on_train_start(self) -> None:
        """Refuse accumulation over batches whose weights are not known in time.

        Raises:
            ValueError: the loader does not say which batches make up a step, or an epoch would end inside one.
        """
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated == 1:
            return
        loader, length = self.trainer.train_dataloader, self.trainer.num_training_batches
        if getattr(loader, "accumulation", None) != accumulated:
            raise ValueError(
                f"trainer.accumulate_grad_batches is {accumulated}, but {type(loader).__name__} does not hand out steps of so many "
                "batches; train from an emu.data.StepLoader (as every MixtureDataModule does), or set it to 1"
            )
        if length % accumulated:
            raise ValueError(
                f"an epoch of {length} batches would end inside an optimizer step of trainer.accumulate_grad_batches {accumulated}; make "
                "trainer.limit_train_batches a multiple of it"
            )

    def training_step(self, batch: Packed, batch_idx: int) -> Tensor:
        """Loss of this rank's rows, scaled so that the mean over ranks and batches is the mean over all tokens of the optimizer step.

        Dropout draws from a generator that is seeded anew for each batch, so that a resumed run needs no generator's state.

        Args:
            batch: packed rows, tensors (R, S).

        Returns:
            () loss.
        """
        torch.manual_seed(
            derive_key("noise", self._noise_seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        )
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._start_step(batch)
        step = self._step_weights
        assert step is not None
        batch = batch._replace(loss_weights=step.weigh(batch.input_ids, batch.loss_weights))
        output = self(batch)
        loss, share = step.share(output.loss, batch.loss_weights.sum())
        meter = self._start_meters()
        meter.add_batch(share, batch.segment_ids)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # one more product with the head, which is why the steps between two rows are not measured
            assert self.model is not None
            losses = losses_of_hidden(output.hidden_states[-1].detach(), self.model.lm_head.weight.detach(), batch)
            self._add_parts(losses, batch, meter.kinds, meter.sources)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip to the norm; where it is not finite, drop the gradients, so that the optimizer leaves everything as it is.

        Raises:
            FloatingPointError: it was not finite for `max_skipped_steps` steps in a row.
        """
        self._rate = optimizer.param_groups[0]["lr"]
        self._before_step = None
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if math.isfinite(value):
            self._skipped_in_a_row = 0
            self._start_meters().add_step(value)
            return
        for parameter in self.parameters():
            parameter.grad = None
        self._start_meters().add_step(0.0)
        self.num_skipped += 1
        self._skipped_in_a_row += 1
        rank_zero_warn(f"step {self.trainer.global_step}: gradient norm {value}; skipped ({self.num_skipped} so far)")
        if self._skipped_in_a_row >= self.max_skipped_steps:
            raise FloatingPointError(
                f"the gradient was not finite for {self._skipped_in_a_row} steps in a row, up to step {self.trainer.global_step}; "
                "lower model.optimizer.lr, or look at the documents of these steps"
            )

    def validation_step(self, batch: Packed, batch_idx: int) -> None:
        """Add the losses of packed rows of tensors (R, S)."""
        if self._validation is None:
            self._validation = PartSums(getattr(self._datamodule(), "validation_names", ()) or ("all",))
        assert self.model is not None
        self._add_parts(token_losses(self.model, batch), batch, None, self._validation)

    def on_validation_epoch_end(self) -> None:
        """Log validation_loss, the mean over all tokens, and validation_loss/<source>."""
        sums, self._validation = self._validation, None
        if sums is None or self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            dist.all_reduce(sums.sums, group=self._group())
        total, weight = sums.sums.sum(dim=1).tolist()
        row = {f"validation_loss/{name}": mean for name, mean in sums.means().items()}
        row["validation_loss"] = total / weight if weight else math.nan
        self.log("validation_loss", row["validation_loss"], logger=False, sync_dist=self.trainer.world_size > 1)
        for logger in self.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    def write_row(self) -> None:
        """Log what happened since the last row."""
        meter = self._start_meters()
        if meter.num_steps == 0:
            return
        meter.gather(self._group(), self._world_size())
        now = time.perf_counter()
        row = meter.row()
        row["tokens_per_second"] = meter.tokens / max(1e-9, now - self._clock)
        row["learning_rate"] = self._rate
        row["skipped_steps"] = float(self.num_skipped)
        for logger in self.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)
        self._clock = now
        meter.reset()

    # State

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curves' open row and the count of skipped steps; nothing but tensors and numbers.

        Inside an optimizer step the row is that before it, as are the weights: the step is made anew.
        """
        assert self.model is not None
        if not is_sharded(self.model):
            (state,), (optimizer,) = checkpoint["optimizer_states"], self.trainer.optimizers
            checkpoint["optimizer_states"] = [number_as_model(state, optimizer, self)]
        checkpoint["emu"] = {
            "meter": self._before_step or self._start_meters().state_dict(),
            "noise_seed": self._noise_seed,
            "num_skipped": self.num_skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "vocabulary": fingerprint(self.config),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back.

        Raises:
            ValueError: the checkpoint belongs to another vocabulary or another model.
        """
        state = checkpoint.get("emu")
        if state is None:
            raise ValueError(f"the checkpoint was not written in the training of a transformer ({type(self).__name__})")
        ours = fingerprint(self.config)
        if state["vocabulary"] != ours:
            raise ValueError(
                f"the checkpoint was trained with the vocabulary {state['vocabulary']}, the data has {ours}"
            )
        if "state_dict" in checkpoint:  # a strategy that shards has loaded and taken it
            check_weights(checkpoint["state_dict"], self.state_dict(), self.strict_loading)
        self._start_meters().load_state_dict(state["meter"])
        self._noise_seed = int(state["noise_seed"])
        self.num_skipped, self._skipped_in_a_row = int(state["num_skipped"]), int(state["skipped_in_a_row"])

    # Inside

    def _start_step(self, batch: Packed) -> None:
        """Weigh an optimizer step before its first batch is trained on."""
        meter = self._start_meters()
        assert self._step_weights is not None
        parts = [(batch.input_ids, batch.loss_weights)]
        if self.trainer.accumulate_grad_batches > 1:
            given = self.trainer.train_dataloader.step_parts  # type: ignore[union-attr]
            parts = [(part.input_ids.to(self.device), part.loss_weights.to(self.device)) for part in given]
            self._before_step = copy.deepcopy(meter.state_dict())
        self._step_weights.start(parts)

    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _start_meters(self) -> StepMeter:
        if self._meter is None:
            assert self.model is not None
            table = self.model.config.vocabulary
            self._kinds = TokenKinds(Vocabulary.from_dict(table)) if table is not None else None
            self.weighting.check(self._kinds)
            batches = self.trainer.accumulate_grad_batches
            self._step_weights = StepWeights(self.weighting, self._kinds, batches, self._group(), self._world_size())
            self._meter = StepMeter(
                self._kinds.names if self._kinds else (), getattr(self._datamodule(), "source_names", ())
            )
        return self._meter

    def _add_parts(self, losses: Tensor, batch: Packed, kinds: PartSums | None, sources: PartSums) -> None:
        """Add each predicted token's loss, of (R, S), to the sums of its kind and of its source."""
        losses, weights = losses.flatten(), batch.loss_weights.flatten()
        if kinds is not None and self._kinds is not None:
            kinds.add(losses, weights, self._kinds(batch.input_ids.flatten()))
        if sources.names:
            sources.add(losses, weights, batch.source_ids.flatten())

    def _world_size(self) -> int:
        """Number of ranks that see different rows."""
        return (getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {}).get("num_replicas", 1)

    def _group(self) -> Any | None:
        """Their process group; None is all."""
        mesh = self.device_mesh
        return None if mesh is None else mesh["data_parallel"].get_group()


class _WriteRows(Callback):
    """Writes a row of the curves every `log_every_n_steps` steps."""

    def __init__(self, module: EmuModule) -> None:
        self._module = module

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._module.write_row()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._module.write_row()
