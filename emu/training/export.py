"""The trained model as a folder that `from_pretrained` reads, written as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from emu.training.parallel import is_sharded, whole_state
from emu_tokenizers.files import new_folder


def export_folder(trainer: Trainer, module: LightningModule, datamodule: Any, folder: Path) -> None:
    """Write the module's model, and beside it what its data module adds, e.g. tokenizers.

    The folder appears under its name when it is complete; an earlier one is replaced.

    Args:
        trainer: that has fitted the module.
        module: whose attribute `model` or `tokenizer` has `save_pretrained`; it may have `complete_export`, which is given the folder at
            last.
        datamodule: may have `save_pretrained` too.
        folder: where.
    """
    model = exported(module)
    weights = {"state_dict": whole_state(model)} if is_sharded(model) else {}
    if trainer.is_global_zero:
        with new_folder(folder) as partial:
            model.save_pretrained(partial, **weights)
            if hasattr(datamodule, "save_pretrained"):
                datamodule.save_pretrained(partial)
            complete = getattr(module, "complete_export", None)
            if callable(complete):
                complete(partial)
    trainer.strategy.barrier("export")


def exported(module: LightningModule) -> Any:
    """The model that a module trains: its `tokenizer` (averaged weights, where it keeps them) or else its `model`.

    Raises:
        TypeError: the module has neither, with save_pretrained.
    """
    for name in ("tokenizer", "model"):
        model = getattr(module, name, None)
        if hasattr(model, "save_pretrained"):
            return model
    raise TypeError(
        f"{type(module).__name__} cannot be exported: it has no `model` with save_pretrained; use --export null"
    )
