"""Checkpoints that a kill cannot spoil: written to a temporary name, flushed to the disk, renamed; older ones go after that."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from emu_tokenizers.files import PARTIAL, replacing

CHECKPOINT_NAME = re.compile(r"step=(\d+)\.ckpt")

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints: either the whole file is there under its name, or none."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    named = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in named if match)


class StepCheckpoint(Checkpoint):
    """Saves every so many steps, after the last one, and on SIGTERM.

    Args:
        every_n_steps: optimizer steps from one checkpoint to the next; 0 saves only after the last step.
        keep: how many of the newest stay.
        folder: where; `checkpoints` in the trainer's root folder by default.

    Raises:
        ValueError: `every_n_steps` is negative or `keep` below 1.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2, folder: str | None = None) -> None:
        if every_n_steps < 0 or keep < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}, keep is {keep}; expected 0 or more and 1 or more")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.folder = folder
        self._saved_step = -1

    def path(self, trainer: Trainer) -> Path:
        """The folder of the checkpoints."""
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "checkpoints"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep what a killed run left half-written."""
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for path in self.path(trainer).glob(f"*{PARTIAL}"):
                path.unlink()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when a termination signal ends the run, which Lightning lets happen between two steps only."""
        if isinstance(exception, SIGTERMException):
            self._save(trainer)
            logger.warning("stopped by SIGTERM after step %d; go on with --ckpt_path last", trainer.global_step)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()
        folder = self.path(trainer)
        trainer.save_checkpoint(folder / f"step={step:08d}.ckpt")
        self._saved_step = step
        if trainer.is_global_zero:
            for _, path in list_checkpoints(folder)[: -self.keep]:
                path.unlink()


def resolve_checkpoint(ckpt_path: str | None, folder: Path) -> Path | None:
    """What `--ckpt_path` means: a file, or "last" for the newest complete checkpoint of `folder`.

    Returns:
        The path, or None for a start from scratch: nothing was asked for, or "last" and there is none yet.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        found = list_checkpoints(folder)
        if not found:
            logger.warning("no checkpoint in %s yet: starting from scratch", folder)
        return found[-1][1] if found else None
    if not Path(ckpt_path).exists():
        raise FileNotFoundError(
            f'no checkpoint {ckpt_path}; give an existing file, or "last" for the newest of {folder}'
        )
    return Path(ckpt_path)
