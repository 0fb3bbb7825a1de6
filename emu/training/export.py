"""The trained model as a folder that `from_pretrained` reads, written as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from emu.files import new_folder


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
        with new_folder(folder) as partial:
            exported(module).save_pretrained(partial)
            if hasattr(datamodule, "save_pretrained"):
                datamodule.save_pretrained(partial)
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
