"""What may change when a run is resumed: it is applied and said; everything else is refused by name.

A checkpoint holds the resolved configuration of its run. Learning rates, decay, schedules and everything about how the trainer runs may
change. What the position and the weights rest on may not: the data's order and content, the model's shape, which batches make a step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from emu.configuration.problems import Problem
from emu.stopping import say
from emu.training.curves import CurveLogger

PARTS = ("trainer", "model", "data", "seed_everything")
"""The parts of a configuration that are recorded and compared."""
TABLES = ("trainer", "model", "model.config", "model.optimizer", "model.weighting", "model.adversarial", "data")
"""Tables whose entries are options of their own; other tables are values."""
NOT_RECORDED = ("logger", "callbacks", "plugins", "profiler", "default_root_dir")
"""Of the trainer: they change nothing that is trained, and may hold what is secret."""
FREE = (
    "trainer.*",
    "model.optimizer.*",
    "model.weighting.*",
    "model.max_*",
    "model.spikes",
    "model.checkpointing",
    "model.compile",
    "model.peak_flops",
    "model.config.*_dropout",
    "model.config.z_loss",
    "model.pretrained",
    "model.init_from",
    # adapters
    "model.dropout",
    "model.merge",
    # vision tokenizers
    "model.average_decay",
    "model.frames_per_clip",
    "model.losses",
    "model.adversarial.weight",
    "model.adversarial.adaptive",
    "model.adversarial.lr",
    "model.start_from",
)
FIXED = (
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "model.optimizer.name",
    "model.optimizer.groups",
)
"""Exceptions from those."""
STARTS = ("model.pretrained", "model.init_from")
"""Where weights came from, which a run that has them needs no more, unless it keeps them."""
SWITCHES = ("model.average_decay",)
"""Options of which 0 leaves a part of the optimizer or the weights out."""


class Change(NamedTuple):
    """An option of the configuration with another value than in the checkpoint.

    Attributes:
        key: dotted.
        before: its value in the run of the checkpoint.
        now: its value.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that a checkpoint holds."""
    kept = {name: values[name] for name in PARTS if name in values}
    if isinstance(kept.get("trainer"), Mapping):
        kept["trainer"] = {name: value for name, value in kept["trainer"].items() if name not in NOT_RECORDED}
    return kept


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two recorded configurations; options that one of them does not know are passed over."""
    old, new = dict(_options(before)), dict(_options(now))
    return [Change(key, old[key], new[key]) for key in new if key in old and old[key] != new[key]]


def refused(found: list[Change], free_data: Collection[str] = (), start_is_kept: bool = False) -> list[Problem]:
    """The changes that a run cannot be resumed with, one problem each.

    Args:
        found: all changes.
        free_data: options of the data module that may change.
        start_is_kept: whether the model that training began from is a part of what is trained, or what it is kept near.
    """
    return [
        Problem(
            f"{key} was {before} in the run of this checkpoint and is {now}; what a run rests on cannot change when it is resumed: set it "
            "back, or start a new run",
            tuple(key.split(".")),
        )
        for key, before, now in found
        if not _may_change(key, before, now, free_data) or (start_is_kept and key in STARTS)
    ]


def _may_change(key: str, before: Any, now: Any, free_data: Collection[str]) -> bool:
    if key.startswith("data."):
        return key.removeprefix("data.init_args.") in free_data
    if key in SWITCHES and not (before and now):
        return False
    return key not in FIXED and any(fnmatch(key, pattern) for pattern in FREE)


def _options(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{path}.{name}" if path else name
        if isinstance(value, Mapping) and key.replace(".init_args", "") in TABLES:
            yield from _options(value, key)
        else:
            yield key, value


class Resume(Callback):
    """Records the configuration in checkpoints, and applies the present one's numbers to an optimizer that was loaded.

    Args:
        configuration: recorded one of this run.
        found: what has changed since the checkpoint that this run goes on from.
    """

    def __init__(self, configuration: Mapping[str, Any], found: list[Change] | None = None) -> None:
        self.configuration = dict(configuration)
        self.found = found or []
        self._groups: list[list[dict[str, Any]]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["configuration"] = self.configuration

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers that the optimizers were built with; what is loaded next replaces them."""
        self._groups = [_settings(optimizer) for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them back, with the learning rate that the schedule has reached; go on with the curves; say what has changed."""
        if not trainer.global_step:
            return
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings if not schedules else {**settings, "lr": group["lr"]})
        for schedule in schedules:
            if isinstance(schedule, LambdaLR):
                schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
                for number, group in enumerate(schedule.optimizer.param_groups):
                    group["lr"] = schedule.base_lrs[number] * schedule.lr_lambdas[number](schedule.last_epoch)
        for logger in trainer.loggers:
            if isinstance(logger, CurveLogger):
                logger.go_on_after(trainer.global_step)
        if trainer.is_global_zero:
            for change in self.found:
                say(str(change))


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Options of the groups of an optimizer."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
