"""Training of vision tokenizers under Lightning.

    module = TokenizerModule(VisionTokenizerConfig.preset("small"))
    Trainer(max_steps=1000).fit(module, loader)       # batches: images, clips, or {"image": ..., "video": ...}
    module.tokenizer.save_pretrained(folder)

Everything random in a step is drawn from the number of the step, so that a run resumed from a checkpoint continues bit for bit (given a
loader that does).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emu_tokenizers.distributed import mean_over_ranks, num_ranks
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.training.adversarial import (
    AdversarialOptions,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from emu_tokenizers.training.alignment import FeatureAlignment
from emu_tokenizers.training.gradient_guard import GradientGuard, forget_skipped, record_skipped
from emu_tokenizers.training.losses import TokenizerLosses, default_losses
from emu_tokenizers.training.parameter_rates import pattern_problems
from emu_tokenizers.training.schedules import OptimizerOptions, rate_factor
from emu_tokenizers.training.spikes import SpikeOptions
from emu_tokenizers.training.tokenizer_optimizers import discriminator_optimizer, tokenizer_optimizer
from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.naming import inflate
from emu_tokenizers.vision.tokenizer import VisionTokenizer
from emu_tokenizers.weight_checks import check_weights

Batch = Tensor | Mapping[str, Tensor]
Pairs = list[tuple[Tensor, Tensor]]
OPTIMIZER = OptimizerOptions(
    lr=8e-3, weight_decay=0.01, beta2=0.99, warmup_steps=50, schedule="full_cosine", final=0.01
)
"""What a tokenizer is trained with where nothing else is said."""


class TokenizerModule(LightningModule):
    """A `VisionTokenizer` in training, on images, clips, or both in each step.

    Args:
        config: the tokenizer, or the name of a preset.
        losses: name -> weight, see `emu_tokenizers.training.losses`; None for squared error and what the quantizer reports.
        optimizer: rates, schedule and weight decay. With the name "muon", Muon takes all matrices and two-dimensional convolutions from
            AdamW: on small models it reaches in a third of the steps what AdamW alone does; a good pair is an `lr` of 2e-3 and a
            `matrix_lr` of 2e-2.
        quantizer_warmup_steps: steps without quantization before a codebook that starts from data does so.
        max_grad_norm: gradients are scaled down to this norm.
        average_decay: decay of a moving average of the weights, 0 for none. The average is what `tokenizer` returns.
        frames_per_clip: frames of each clip to reconstruct in a training step, None for all.
        adversarial: a discriminator and its settings; None for none.
        teacher: frozen model whose features the codes are aligned with, frames (N, 3, H, W) -> (N, C, h, w); weighed by
            the loss "alignment".
        teacher_dim: channels C of its features.
        start_from: folder or repository of a tokenizer to go on from: all weights, or those of an image tokenizer where
            `config` has a larger temporal factor. Its codebook is kept, without a warm-up.
        max_skipped_steps: steps with a gradient that is not finite change nothing; this many of them in a row end the run.
        spikes: when a step is a spike, whose update is skipped; None where none is looked for. Their window should not end before the
            codebook and the discriminator have started.

    Raises:
        ValueError: an unknown loss, or a tokenizer to start from that does not fit `config`.
    """

    def __init__(
        self,
        config: VisionTokenizerConfig | str = "small",
        losses: dict[str, float] | None = None,
        optimizer: OptimizerOptions = OPTIMIZER,
        quantizer_warmup_steps: int = 100,
        max_grad_norm: float = 1.0,
        average_decay: float = 0.0,
        frames_per_clip: int | None = None,
        adversarial: AdversarialOptions | None = None,
        teacher: nn.Module | None = None,
        teacher_dim: int = 0,
        start_from: str | None = None,
        max_skipped_steps: int = 10,
        spikes: SpikeOptions | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        config = VisionTokenizerConfig.preset(config) if isinstance(config, str) else config
        self.model = make_model(config, start_from)
        losses = dict(losses or default_losses(self.model.quantizer.loss_weights))
        aligned = () if teacher is None else ("alignment",)
        self.losses = TokenizerLosses(losses, (*self.model.quantizer.loss_weights, *aligned))
        self.alignment = None if teacher is None else FeatureAlignment(teacher, config.embed_dim, teacher_dim)
        self.adversarial, self.discriminator = adversarial, None
        if adversarial is not None:
            width, depth = adversarial.base_channels, adversarial.num_layers
            self.discriminator = PatchDiscriminator(config.out_channels, width, depth)
        self.optimizer_options = optimizer
        self.quantizer_warmup_steps = quantizer_warmup_steps if self._needs_warmup() else 0
        self.gradients = GradientGuard(max_grad_norm, max_skipped_steps, spikes)
        self._clock, self._waited, self._num_samples = time.perf_counter(), 0.0, 0
        self._peaks: list[float] = []
        self.frames_per_clip = frames_per_clip
        self.average = None
        if average_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(average_decay))
        self.train_codes = CodeCounter(self.model.codebook_sizes)
        self.val_codes = CodeCounter(self.model.codebook_sizes)

    def _needs_warmup(self) -> bool:
        return self.model.quantizer.starts_from_data and not self.model.quantizer.started

    @property
    def tokenizer(self) -> VisionTokenizer:
        """The tokenizer that is measured and exported: the averaged weights where there are some. Asking for it changes no mode."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, VisionTokenizer)
        return self.average.module

    def setup(self, stage: str) -> None:
        """Tell DDP that a step may leave parameters out: temporal layers without clips, the codebook during its warm-up."""
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def problems(self, trainer: Any) -> list[str]:
        """What keeps this module from being trained by a trainer, one sentence each."""
        found = self.optimizer_options.problems(max(1, trainer.max_steps))  # a number of epochs ends a run too
        found += self.gradients.problems()
        if self.optimizer_options.groups and self.optimizer_options.name == "muon":
            found.append(
                "optimizer.groups is set and optimizer.name is muon, which splits parameters by itself; use adamw, or no groups"
            )
        elif self.optimizer_options.groups:
            found += pattern_problems(dict(self.model.named_parameters()), self.optimizer_options)
        if trainer.accumulate_grad_batches != 1:
            found.append(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; a vision tokenizer is trained on whole steps, "
                "set it to 1 and choose the samples of a step in the data"
            )
        return found

    def on_train_start(self) -> None:
        """Start the clock; forget skipped steps that are not of this run's past."""
        self._clock, self._waited, self._num_samples = time.perf_counter(), 0.0, 0
        if self.trainer.is_global_zero:
            forget_skipped(Path(self.trainer.default_root_dir), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the guard looks back on."""
        checkpoint["gradients"] = self.gradients.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes of the weights.

        Raises:
            ValueError: the checkpoint is of another module.
        """
        if "emu" in checkpoint:
            raise ValueError("the checkpoint was written in the training of a transformer, not of a vision tokenizer")
        check_weights(checkpoint["state_dict"], self.state_dict())
        if "gradients" in checkpoint:  # checkpoints of earlier versions have none
            self.gradients.load_state_dict(checkpoint["gradients"])

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW, or it and Muon, over all parameters of the tokenizer, and one for the discriminator where there is one."""
        others = [] if self.alignment is None else list(self.alignment.project.parameters())
        first = tokenizer_optimizer(self.model, self.optimizer_options, others)
        self._peaks = [group["lr"] for group in first.param_groups]
        if self.adversarial is None or self.discriminator is None:
            return [first]
        return [first, discriminator_optimizer(self.discriminator, self.adversarial.lr, self.optimizer_options)]

    def learning_rate(self, step: int) -> float:
        """Learning rate of AdamW in a step."""
        return self.optimizer_options.lr * self._share_of_rate(step)

    def _share_of_rate(self, step: int) -> float:
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches
        return rate_factor(step, self.optimizer_options, self.optimizer_options.total_steps or int(steps))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step on images (B, 3, H, W), clips (B, T, 3, H, W), or a mapping of both."""
        step = self.global_step
        optimizers = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        for group, peak in zip(optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._share_of_rate(step)
        parts = parts_of(batch)
        passes = {kind: self._reconstruct(pixels, step) for kind, pixels in parts.items()}
        total = torch.stack([self.losses.total(losses) for losses, *_ in passes.values()]).mean()
        pairs = [(found, wanted) for _, found, wanted in passes.values()]
        extra = self._fool_discriminator(total, pairs, step)
        optimizer.zero_grad()
        self.manual_backward(total + extra)
        norm = self._guard_gradients(optimizer, total + extra, step)
        optimizer.step()
        self._train_discriminator(pairs, step)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._num_samples += sum(map(len, parts.values())) * num_ranks()
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/gradient_norm", norm)
            self._log_pace()
            self._log_training(total, {kind: losses for kind, (losses, *_) in passes.items()})

    def _guard_gradients(self, optimizer: Any, loss: Tensor, step: int) -> float:
        """Clip the gradient of a step, or drop it (see `GradientGuard`); its norm."""
        norm = self.gradients.apply(self.model.parameters(), step, lambda: float(mean_over_ranks(loss.detach())))
        if self.gradients.skipped:
            optimizer.zero_grad()  # also what is trained with the tokenizer
            if self.trainer.is_global_zero:
                record_skipped(Path(self.trainer.default_root_dir), step, self.gradients.skipped, ())
        self.gradients.end_if_due(step)
        return norm

    def _reconstruct(self, pixels: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Named losses of images or clips, and the frames (N, 3, H, W) that were found and wanted."""
        frames = self._drawn_frames(pixels, step)
        out = self.model(pixels, quantize=step >= self.quantizer_warmup_steps, frame_indices=frames)
        if out.ids is not None:
            self.train_codes.add(out.ids)
        found, wanted = as_frames(out.reconstruction), as_frames(pixels if frames is None else pixels[:, frames])
        reported = dict(out.losses)
        if self.alignment is not None and out.vectors is not None:
            reported["alignment"] = self.alignment(out.vectors, pixels)
        return self.losses(found, wanted, reported), found, wanted

    def _fool_discriminator(self, other: Tensor, pairs: Pairs, step: int) -> Tensor:
        """Weighted loss of the tokenizer against the discriminator; zero before its start."""
        options = self.adversarial
        if options is None or self.discriminator is None or step < options.start_step:
            return other.new_zeros(())
        self.discriminator.requires_grad_(False)
        loss = torch.stack([generator_loss(self.discriminator(found)) for found, _ in pairs]).mean()
        self.discriminator.requires_grad_(True)
        weight: Tensor | float = options.weight
        if options.adaptive:
            weight = weight * adaptive_weight(other, loss, self.model.decoder.conv_out.weight)
        self.log_dict({"train/generator": loss.detach(), "train/generator_weight": float(weight)})
        return weight * loss

    def _train_discriminator(self, pairs: Pairs, step: int) -> None:
        """One step of the discriminator. It uses the plain optimizer: Lightning counts the steps of its own as steps."""
        if self.adversarial is None or self.discriminator is None or step < self.adversarial.start_step:
            return
        optimizers = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizers, list)
        optimizer = optimizers[1]
        losses = [
            discriminator_loss(self.discriminator(wanted), self.discriminator(found.detach()))
            for found, wanted in pairs
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/discriminator", loss.detach())

    def _drawn_frames(self, pixels: Tensor, step: int) -> Tensor | None:
        """Indices of the frames that this step reconstructs, None for all."""
        if pixels.ndim != 5 or self.frames_per_clip is None or self.frames_per_clip >= pixels.shape[1]:
            return None
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randperm(pixels.shape[1], generator=generator)[: self.frames_per_clip]
        return drawn.sort().values.to(pixels.device)

    def _log_pace(self) -> None:
        """Log speed, the share of the time spent waiting for data, and how many steps were skipped."""
        now, waited = time.perf_counter(), getattr(self.trainer.train_dataloader, "waited", 0.0)
        seconds = max(1e-9, now - self._clock)
        self.log("train/samples_per_second", self._num_samples / seconds)
        self.log("train/waiting", (waited - self._waited) / seconds)
        self.log("train/skipped_steps", float(self.gradients.num_skipped))
        self._clock, self._waited, self._num_samples = now, waited, 0

    def _log_training(self, total: Tensor, losses: dict[str, dict[str, Tensor]]) -> None:
        self.log("train/loss", total.detach(), prog_bar=True)
        self.log("train/lr", self.learning_rate(self.global_step - 1))
        for kind, part in losses.items():
            self.log_dict({f"train/{kind}/{name}": loss.detach() for name, loss in part.items()})
        if self.global_step > self.quantizer_warmup_steps:
            self._log_codes("train", self.train_codes)
        self.train_codes = CodeCounter(self.model.codebook_sizes)

    def _log_codes(self, stage: str, counter: CodeCounter) -> None:
        measured = counter.measure()
        values = {"use": measured.use, "perplexity": measured.perplexity, "dead": float(measured.dead)}
        self.log_dict({f"{stage}/codebook_{name}": value for name, value in values.items()})

    def on_validation_epoch_start(self) -> None:
        """Start the count of codes anew."""
        self.val_codes = CodeCounter(self.model.codebook_sizes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruct a batch through the codes (without them before the codebook has started)."""
        model = self.tokenizer
        for kind, pixels in parts_of(batch).items():
            out = model(pixels, quantize=model.quantizer.started)
            if out.ids is not None:
                self.val_codes.add(out.ids)
            self.log(
                f"val/{kind}/psnr", psnr(out.reconstruction, pixels).mean(), batch_size=len(pixels), sync_dist=True
            )

    def on_validation_epoch_end(self) -> None:
        """Log the use of the codebook over all validation batches."""
        if any(int(counts.sum()) for counts in self.val_codes.counts):
            self._log_codes("val", self.val_codes)


def make_model(config: VisionTokenizerConfig, start_from: str | None) -> VisionTokenizer:
    """A tokenizer in training mode, new or going on from a saved one."""
    model = VisionTokenizer(config)
    if start_from is not None:
        given = VisionTokenizer.from_pretrained(start_from, dtype=torch.float32)
        weights = given.state_dict()
        if given.temporal_factor == 1 and config.temporal_factor > 1:
            weights = inflate(weights, model.state_dict())
        model.load_weights(weights, start_from)
    return model.train()


def parts_of(batch: Batch) -> dict[str, Tensor]:
    """A batch as named parts: "image" (B, 3, H, W) and "video" (B, T, 3, H, W).

    Raises:
        TypeError: neither a tensor nor a mapping of tensors.
    """
    if isinstance(batch, Tensor):
        return {"video" if batch.ndim == 5 else "image": batch}
    if isinstance(batch, Mapping):
        return dict(batch)
    raise TypeError(f"a batch is a tensor of pixels or a mapping of such tensors; got {type(batch).__name__}")


def as_frames(pixels: Tensor) -> Tensor:
    """Images or clips as frames (N, 3, H, W)."""
    return pixels if pixels.ndim == 4 else pixels.flatten(0, 1)
