"""What keeps an `EmuModule` from being trained, found before any work."""

from __future__ import annotations

from typing import Any, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from emu.model import EmuConfig
from emu.model.model import tensor_shapes
from emu.training.initial_weights import source_of_weights_problems
from emu.training.objectives import Objective
from emu.training.weighting import LossWeighting
from emu.training.words import as_list
from emu_tokenizers.training.gradient_guard import GradientGuard
from emu_tokenizers.training.parameter_rates import pattern_problems
from emu_tokenizers.training.schedules import OptimizerOptions


class ModuleOptions(Protocol):
    """What a module is told of its training; see `EmuModule`."""

    config: EmuConfig | None
    pretrained: str | None
    init_from: str | None
    optimizer_options: OptimizerOptions
    weighting: LossWeighting
    objective: Objective
    gradients: GradientGuard
    average_decay: float
    peak_flops: float | None


def module_problems(module: ModuleOptions, trainer: Any) -> list[str]:
    """Everything that keeps a module from being trained by a trainer, or by one of these settings; one sentence each."""
    weights = (module.config, module.pretrained, module.init_from)
    return [
        *module.optimizer_options.problems(trainer.max_steps),
        *module.weighting.problems(),
        *_group_problems(module),
        *source_of_weights_problems(*weights, there=isinstance(trainer, Trainer)),
        *module.gradients.problems(),
        *_number_problems(module),
        *trainer_problems(trainer),
        *module.objective.problems(trainer),
    ]


def trainer_problems(trainer: Any) -> list[str]:
    """Settings of the trainer that the module would contradict; one sentence each."""
    found = []
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in as_list(trainer.callbacks)):
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


def check_accumulation(trainer: Trainer) -> None:
    """Refuse accumulation over batches whose weights are not known in time.

    Raises:
        ValueError: the loader does not say which batches make up a step, or an epoch would end inside one.
    """
    accumulated = trainer.accumulate_grad_batches
    if accumulated == 1:
        return
    loader, length = trainer.train_dataloader, trainer.num_training_batches
    if getattr(loader, "accumulation", None) != accumulated:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulated}, but {type(loader).__name__} does not hand out steps of that many "
            "batches; train from an emu.data.StepLoader (as every MixtureDataModule does), or set it to 1"
        )
    if length % accumulated:
        raise ValueError(
            f"an epoch of {length} batches would end inside an optimizer step of trainer.accumulate_grad_batches {accumulated}; make "
            "trainer.limit_train_batches a multiple of it"
        )


def _group_problems(module: ModuleOptions) -> list[str]:
    if module.config is None or not module.optimizer_options.groups:
        return []
    return pattern_problems(tensor_shapes(module.config), module.optimizer_options)


def _number_problems(module: ModuleOptions) -> list[str]:
    found = []
    if module.peak_flops is not None and not module.peak_flops > 0:
        found.append(f"peak_flops is {module.peak_flops}; expected a positive number of operations a second")
    if not 0 <= module.average_decay < 1:
        found.append(f"average_decay is {module.average_decay}; expected a number in [0, 1), 0 for no average")
    return found
