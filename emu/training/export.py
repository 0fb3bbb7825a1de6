"""The trained model as a folder that `from_pretrained` reads, replaced as a whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from emu.training.checkpoints import TEMPORARY


def export_folder(trainer: Trainer, module: LightningModule, datamodule: Any, folder: Path) -> None:
    """Write the module's model, and beside it what its data module adds, e.g. tokenizers.

    The folder appears under its name when it is complete; an earlier one is replaced.

    Args:
        trainer: that has fitted the module.
        module: has `save_pretrained`, or an attribute `model` that has.
        datamodule: may have `save_pretrained` too.
        folder: where.
    """
    if trainer.is_global_zero:
        partial = folder.with_name(folder.name + TEMPORARY)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        exported(module).save_pretrained(partial)
        if hasattr(datamodule, "save_pretrained"):
            datamodule.save_pretrained(partial)
        replace_folder(partial, folder)
    trainer.strategy.barrier("export")


def exported(module: LightningModule) -> Any:
    """The part of a module that knows `save_pretrained`.

    Raises:
        TypeError: there is none.
    """
    model: nn.Module | None = getattr(module, "model", None)
    for candidate in (module, model):
        if hasattr(candidate, "save_pretrained"):
            return candidate
    raise TypeError(
        f"{type(module).__name__} cannot be exported: neither it nor its `model` has save_pretrained; use --export null"
    )


def replace_folder(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; the one that had it goes."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
