"""Training of the transformer under Lightning: an objective over packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.predictions import predictions_of_hidden
from emu.model.scoring import losses_of_hidden
from emu.packing import Packed
from emu.randomness import derive_key
from emu.training.blocks import Checkpointing, checkpoint_blocks, compile_blocks
from emu.training.initial_weights import go_on_with, start_from
from emu.training.meters import TokenKinds
from emu.training.module_problems import check_accumulation, module_problems
from emu.training.objectives import LossParts, NextToken, Objective
from emu.training.optimizers import build_optimizer
from emu.training.parallel import Ranks, is_sharded, number_as_model, shard
from emu.training.reporting import Reporter
from emu.training.sharded_start import build_sharded
from emu.training.vocabularies import check_vocabulary, fingerprint, with_vocabulary
from emu.training.weight_average import WeightAverage
from emu.training.weighting import LossWeighting, StepWeights
from emu.vocabulary import Vocabulary
from emu_tokenizers.training.gradient_guard import GradientGuard, forget_skipped, record_skipped
from emu_tokenizers.training.schedules import OptimizerOptions
from emu_tokenizers.training.spikes import SpikeOptions
from emu_tokenizers.weight_checks import check_weights

NEXT_TOKEN = lazy_instance(NextToken)
"""What is minimised where nothing else is said; it has no state. Making it takes a second, so that subclasses share it."""


class EmuModule(LightningModule):
    """An `EmuForCausalLM` in training.

    The model is built by `configure_model`, when the data module's vocabulary is known: its size and special ids go into the model's
    configuration, so that a recipe need not repeat them. Nothing is stored as hyperparameters; the run's `config.yaml` is the record.

    An optimizer step takes `trainer.accumulate_grad_batches` batches on every rank. Its loss is one mean over all of their tokens: a batch
    counts by its share of the step's weight, which the loader knows before the first of them is trained on (`StepLoader.step_parts`).

    Args:
        config: size and options of a new model.
        pretrained: folder of a model to start from instead, as it is.
        init_from: weights of a new model instead of random ones: a folder or a checkpoint, whose vocabulary, length and rotary base may be
            others; see `emu.training.initial_weights`. Without `config` the new model has that of the weights.
        optimizer: learning rate, schedule and weight decay.
        weighting: how much text, controls and each modality's codes count in the loss.
        max_grad_norm: gradients are scaled down to this norm.
        max_skipped_steps: steps with a gradient that is not finite change nothing; this many of them in a row end the run.
        objective: what is minimised; next-token prediction by default.
        spikes: when a step is a spike, whose update is skipped; None where none is looked for.
        checkpointing: what blocks keep for the backward pass, everything ("none"), results of products ("selective"), or nothing
            ("full"); the rest is computed again.
        compile: compile the blocks with torch.compile, which takes minutes at the first step.
        average_decay: decay of a moving average of the weights, 0 for none. The average is what is validated and exported; checkpoints
            hold it beside the weights.
        peak_flops: operations a second of one device in the precision of the products, e.g. 989e12 of an H100 in bfloat16; then the
            share of them that training needs is reported, train/mfu (see `emu.training.flops`).

    Attributes:
        model: the transformer, None before `configure_model`.
        gradients: clips gradients and counts the steps that were skipped.
        reporter: collects the curves.
        weight_average: of the weights, where there is one.
    """

    def __init__(
        self,
        config: EmuConfig | None = None,
        pretrained: str | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008 (frozen)
        weighting: LossWeighting = LossWeighting(),  # noqa: B008 (frozen)
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 10,
        objective: Objective = NEXT_TOKEN,
        spikes: SpikeOptions | None = None,
        checkpointing: Checkpointing = "none",
        compile: bool = False,
        average_decay: float = 0.0,
        peak_flops: float | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.pretrained, self.init_from = config, pretrained, init_from
        self.optimizer_options = optimizer
        self.weighting, self.objective = weighting, objective
        self.checkpointing, self.compiled = checkpointing, compile
        self.average_decay, self.peak_flops = average_decay, peak_flops
        self.weight_average: WeightAverage | None = None
        self.gradients = GradientGuard(max_grad_norm, max_skipped_steps, spikes)
        self.reporter = Reporter(peak_flops)
        self.model: EmuForCausalLM | None = None
        self._step_weights: StepWeights | None = None
        self._noise_seed = torch.initial_seed()
        self._loss_of_step = torch.zeros(())

    def configure_model(self) -> None:
        """Build the model, once."""
        if self.model is not None:
            return
        vocabulary = getattr(self._datamodule(), "vocabulary", None)
        if self.device_mesh is not None and type(self).build_model is EmuModule.build_model:
            self.model = self._build_split(vocabulary).train()
        else:
            self.model = self.build_model(vocabulary).train()
            self._prepare(self.model)
        self.config = self.model.config
        if self.average_decay:
            self.weight_average = WeightAverage(self.model, self.average_decay)
        self.reporter.watch(self.model)
        self.objective.setup(self)

    def build_model(self, vocabulary: Vocabulary | None) -> EmuForCausalLM:
        """The model that training starts from.

        Args:
            vocabulary: of the data; None where it is not known.

        Raises:
            ValueError: it is not the model's.
        """
        if self.pretrained is not None:
            model: EmuForCausalLM = EmuForCausalLM.from_pretrained(self.pretrained, dtype=torch.float32)
            check_vocabulary(model.config, vocabulary)
            return model
        if self.init_from is not None and not self._starts_at_random():
            tokenizer = getattr(self._datamodule(), "document_tokenizer", None)
            return start_from(self.init_from, self.config, vocabulary, tokenizer)
        return EmuForCausalLM(self._new_config(vocabulary))

    def _build_split(self, vocabulary: Vocabulary | None) -> EmuForCausalLM:
        """The model that training starts from, of which each rank makes or reads its own share alone."""
        device = self.trainer.strategy.root_device
        if self.pretrained is not None:
            return go_on_with(self.pretrained, vocabulary, self._prepare, device)
        if self.init_from is not None and not self._starts_at_random():
            tokenizer = getattr(self._datamodule(), "document_tokenizer", None)
            return start_from(self.init_from, self.config, vocabulary, tokenizer, self._prepare, device)
        return build_sharded(self._new_config(vocabulary), self._prepare, device)

    def _starts_at_random(self) -> bool:
        """Whether a model has new weights; a run that goes on takes all that it trains from its checkpoint."""
        resumed = self._trainer is not None and self._trainer.ckpt_path is not None
        needed = not resumed or self.objective.keeps_start
        return self.config is not None and (self.init_from is None or not needed)

    def _new_config(self, vocabulary: Vocabulary | None) -> EmuConfig:
        assert self.config is not None
        return self.config if vocabulary is None else with_vocabulary(self.config, vocabulary)

    def _prepare(self, model: EmuForCausalLM) -> None:
        """Let the blocks run as they are asked to, and split the model where there is a mesh."""
        self.prepare_blocks(model)
        if self.device_mesh is not None:
            shard(model, self.device_mesh)

    def prepare_blocks(self, model: EmuForCausalLM) -> None:
        """Let the blocks run as they are asked to."""
        if self.checkpointing != "none":
            checkpoint_blocks(model, self.checkpointing)
        if self.compiled:
            compile_blocks(model)

    def configure_optimizers(self) -> Any:
        """The optimizer, its rate set step by step."""
        assert self.model is not None
        total = self.optimizer_options.total_steps or max(1, self.trainer.max_steps)
        optimizer, schedule = build_optimizer(self.model, self.optimizer_options, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """The reporter."""
        return [self.reporter]

    def problems(self, trainer: Trainer) -> list[str]:
        """Everything that keeps this module from being trained by `trainer`, one sentence each."""
        return module_problems(self, trainer)

    def on_fit_start(self) -> None:
        """Prepare the steps; a checkpoint may have asked for them already."""
        self._weights_of_steps()

    def on_train_start(self) -> None:
        """Refuse accumulation over batches whose weights are not known in time; forget skipped steps that are not of this run's past.

        Raises:
            ValueError: the loader does not say which batches make up a step, or an epoch would end inside one.
        """
        if self.trainer.is_global_zero:
            forget_skipped(Path(self.trainer.default_root_dir), self.trainer.global_step)
        check_accumulation(self.trainer)

    def forward(self, batch: Packed) -> LossParts:
        """What the objective makes of packed rows, tensors (R, S)."""
        assert self.model is not None
        return self.objective.loss(self.model, batch)

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
        step = self._weights_of_steps()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._start_step(step, batch)
        batch = step.weigh(batch)
        logged = (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self.reporter.measure_next(logged)
        parts = self(batch)
        share = step.share(batch).to(parts.loss.dtype)
        self._loss_of_step = self._loss_of_step.to(share.device) + parts.loss.detach() * share
        self.reporter.add_batch(batch, parts, share, logged)
        # Lightning averages gradients over ranks and over a step's batches, which weigh differently: each counts by its share of all
        return parts.loss * share * step.count

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient of a step, or drop it; see `GradientGuard`."""
        step, ranks = self.trainer.global_step, Ranks.of(self)
        norm = self.gradients.apply(self.parameters(), step, lambda: float(ranks.sum(self._loss_of_step)))
        self.reporter.end_step(norm, optimizer.param_groups[0]["lr"], self.gradients.num_skipped)
        if self.gradients.skipped and self.trainer.is_global_zero:
            record_skipped(Path(self.trainer.default_root_dir), step, self.gradients.skipped, self._documents_of_step())
        self.gradients.end_if_due(step)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take a step of the optimizer, and the weights after it into their average; a step that was skipped changes neither."""
        super().optimizer_step(*arguments, **options)
        if self.weight_average is not None and not self.gradients.skipped:
            self.weight_average.update()

    def on_validation_start(self) -> None:
        """Validate the average of the weights, where there is one."""
        if self.weight_average is not None:
            self.weight_average.use()

    def on_validation_end(self) -> None:
        """Train on; callbacks have seen the weights that were validated."""
        if self.weight_average is not None:
            self.weight_average.put_back()

    def on_fit_end(self) -> None:
        """Leave the average of the weights in the model, to be exported."""
        if self.weight_average is not None:
            self.weight_average.use()

    def validation_step(self, batch: Packed, batch_idx: int) -> None:
        """Add the losses of packed rows of tensors (R, S)."""
        assert self.model is not None
        names = getattr(self._datamodule(), "validation_names", ())
        self.reporter.measure_next(True)
        out = self.model(input_ids=batch.input_ids, segment_ids=batch.segment_ids, return_hidden=True)
        hidden, head = out.hidden_states[-1], self.model.lm_head.weight
        losses, predictions = losses_of_hidden(hidden, head, batch), predictions_of_hidden(hidden, head, batch)
        self.reporter.add_validation(losses, predictions, batch, names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curves' open row and the count of skipped steps; nothing but tensors and numbers.

        Inside an optimizer step the row is that before it, as are the weights: the step is made anew.
        """
        assert self.model is not None
        average = self.weight_average
        if average is not None and average.put_back():  # a stop in the middle of a validation
            checkpoint["state_dict"] = self.trainer.strategy.lightning_module_state_dict()
        if not is_sharded(self.model):
            (state,), (optimizer,) = checkpoint["optimizer_states"], self.trainer.optimizers
            checkpoint["optimizer_states"] = [number_as_model(state, optimizer, self)]
        checkpoint["emu"] = {
            "meter": self.reporter.snapshot(),
            "noise_seed": self._noise_seed,
            "vocabulary": fingerprint(self.config),
            "objective": self.objective.state_dict(),
            **({} if average is None else {"average": average.state_dict()}),
            **self.gradients.state_dict(),
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
        self._weights_of_steps()
        self.reporter.go_on(state["meter"], first=self.global_rank == 0)
        self._noise_seed = int(state["noise_seed"])
        self.gradients.load_state_dict(state)
        if self.weight_average is not None and "average" in state:
            self.weight_average.load_state_dict(state["average"])
        self.objective.load_state_dict(state.get("objective", {}))

    def _start_step(self, step: StepWeights, batch: Packed) -> None:
        """Weigh an optimizer step before its first batch is trained on."""
        batches = self.trainer.accumulate_grad_batches
        self._loss_of_step = torch.zeros((), device=self.device)
        self.reporter.begin_step(batches)
        if batches == 1:
            step.start([batch])
        else:
            step.start([part.to(self.device) for part in self.trainer.train_dataloader.step_parts])  # type: ignore[union-attr]

    def _documents_of_step(self) -> list[dict[str, Any]]:
        """Addresses of the documents of the present step, over all of its batches and ranks; none where the loader does not know them."""
        references = getattr(self.trainer.train_dataloader, "references", None)
        last = self.trainer.fit_loop.total_batch_idx
        batches = range(last + 1 - self.trainer.accumulate_grad_batches, last + 1)
        return [part._asdict() for batch in batches for part in references(batch)] if callable(references) else []

    def _weights_of_steps(self) -> StepWeights:
        """Those of this run; the first call prepares them, and the reporter with them."""
        if self._step_weights is None:
            assert self.model is not None
            table = self.model.config.vocabulary
            kinds = TokenKinds(Vocabulary.from_dict(table)) if table is not None else None
            self.weighting.check(kinds)
            ranks, batches = Ranks.of(self), self.trainer.accumulate_grad_batches
            self._step_weights = StepWeights(self.objective, self.weighting, kinds, batches, ranks)
            self.reporter.start(kinds, getattr(self._datamodule(), "source_names", ()), ranks)
        return self._step_weights

    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None)
