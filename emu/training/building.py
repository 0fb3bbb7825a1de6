"""Module, data and trainer out of a configuration; where one of them cannot be built, the others still are, to be looked at."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from emu.configuration.problems import Problem
from emu.training.checkpoints import StepCheckpoint
from emu.training.refusals import reason

BUILD_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, MisconfigurationException)
"""What constructors raise for what they cannot take."""


def build_apart(parser: LightningArgumentParser, config: Namespace) -> tuple[dict[str, Any], list[Problem]]:
    """Build the parts one by one.

    Returns:
        The parts that can be built, by "model", "data" and "trainer" (of the last only what it is made of), and a problem for each of the
        others.
    """
    built: dict[str, Any] = {}
    problems = []
    for part, groups in (("model", True), ("data", False), ("trainer", False)):
        try:
            alone = parser.instantiate_classes(Namespace(**{part: config[part]}), instantiate_groups=groups)
            built[part] = alone[part]
        except BUILD_ERRORS as error:
            problems.append(Problem(reason(str(error)), (part,)))
    try:
        StepCheckpoint(**config.checkpoint.as_dict())
    except ValueError as error:
        problems.append(Problem(reason(str(error)), ("checkpoint",)))
    return built, problems


def complete_settings(trainer: Namespace) -> None:
    """Set what Lightning needs beside the trainer's options that were given.

    An interval of validation in steps counts across epochs, which only pace the data.
    """
    interval = trainer.val_check_interval
    if isinstance(interval, int) and not isinstance(interval, bool) and trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = None
