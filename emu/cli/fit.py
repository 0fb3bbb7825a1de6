"""`emu fit` and `emu fit-tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def fit(arguments: Sequence[str]) -> None:
    """Train a transformer."""
    from emu.training import cli

    tell(cli.fit(arguments))


def fit_tokenizer(arguments: Sequence[str]) -> None:
    """Train a vision tokenizer."""
    from emu.training import cli

    tell(cli.fit_tokenizer(arguments))


def tell(module: LightningModule) -> None:
    """Say where the run is."""
    trainer = module.trainer
    if trainer.is_global_zero:
        print(f"{trainer.global_step} steps done; curves, checkpoints and the model are in {trainer.default_root_dir}")
