"""Checkpoints of a run: when they are written, which stay, and which one a run goes on from.

A kill cannot spoil them: each is written to a temporary name, flushed to the disk and renamed, and older ones go after that.
"""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from emu.stopping import STOP_SIGNALS, StopRequest
from emu.training.checkpoint_file import (
    OLD_SUFFIX,
    SUFFIX,
    BadCheckpoint,
    read_checkpoint,
    read_content,
    write_checkpoint,
)
from emu.training.position import catch_up, loops_at, position
from emu_tokenizers.files import PARTIAL

CHECKPOINT_NAME = re.compile(rf"step=(\d+)(?:{re.escape(SUFFIX)}|{re.escape(OLD_SUFFIX)})")
SET_ASIDE = ".old"
"""Added to the name of a checkpoint that was passed over: a damaged one, or a later one than that which a run goes on from."""

logger = logging.getLogger(__name__)


class StopTraining(Exception):
    """A signal asked for the end of the run, which saves and stops.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints without pickle, in one file each (`emu.training.checkpoint_file`), for Lightning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    named = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in named if match)


def superseded(folder: Path, step: int, keep: int) -> list[Path]:
    """Checkpoints of a folder from before a step that have to go for `keep` of them to stay, that of the step among them."""
    older = [path for number, path in list_checkpoints(folder) if number < step]
    return older[: max(0, len(older) + 1 - keep)]


class StepCheckpoint(Checkpoint):
    """Saves every N steps, after the last one, and when Ctrl-C or SIGTERM ends the run.

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
        self._request = StopRequest("saving a checkpoint after this batch, then stopping")

    def path(self, trainer: Trainer) -> Path:
        """The folder of the checkpoints."""
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "checkpoints"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep what a killed run left half-written, and set damaged checkpoints aside that were passed over."""
        if trainer.is_global_zero:
            for path in self.path(trainer).glob(f"*{PARTIAL}"):
                path.unlink()
            if trainer.ckpt_path is not None:
                set_aside_later(self.path(trainer), Path(trainer.ckpt_path))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note signals from here on; make up for a validation that the earlier part of the run did not come to."""
        self._saved_step = trainer.global_step
        # Lightning has put its own there just before, and puts back what was there at the end.
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                trainer._signal_connector._register_signal(number, self._request)  # type: ignore[arg-type]
        if trainer.global_step:
            catch_up(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; stop when that was asked for."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop when that was asked for; several ranks finish the validation, of which each may have another number of batches."""
        if trainer.world_size == 1:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when a signal ends the run."""
        if isinstance(exception, StopTraining):
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where the run stands in numbers of our own, which depend on no version of Lightning."""
        del checkpoint["loops"]
        checkpoint["position"] = position(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put Lightning's loops there."""
        checkpoint["loops"] = loops_at(trainer, checkpoint["position"])

    def _stop_if_asked(self, trainer: Trainer) -> None:
        number = self._request.number
        if trainer.world_size > 1:  # all ranks stop after the same batch
            numbers = torch.tensor(number, device=trainer.strategy.root_device)
            dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
            number = int(numbers)
        if number:
            raise StopTraining(number)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()
        folder = self.path(trainer)
        saved = folder / f"step={step:08d}{SUFFIX}"
        trainer.save_checkpoint(saved)
        self._saved_step = step
        if trainer.is_global_zero:
            for path in superseded(folder, step, self.keep):
                path.unlink()


class Found(NamedTuple):
    """A checkpoint that is as it was written.

    Attributes:
        path: its file.
        content: what it says beside its tensors.
    """

    path: Path
    content: dict[str, Any]


def resolve_checkpoint(ckpt_path: str | None, folder: Path) -> Found | None:
    """What `--ckpt_path` means: a file, or "last" for the newest checkpoint of `folder` that is as it was written.

    Damaged ones are passed over with a warning that names them and the one that is taken.

    Returns:
        The checkpoint, or None for a start from scratch: nothing was asked for, or "last" and there is none yet.

    Raises:
        FileNotFoundError: there is no such file.
        BadCheckpoint: it is damaged, or "last" and all of them are.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        return _newest_good(folder)
    path = Path(ckpt_path)
    if not path.is_file():
        raise FileNotFoundError(
            f'no checkpoint {ckpt_path}; give an existing file, or "last" for the newest of {folder}'
        )
    try:
        return Found(path, check_checkpoint(path))
    except BadCheckpoint as error:
        others = [str(other) for _, other in list_checkpoints(path.parent) if other != path and _is_good(other)]
        advice = f"; {others[-1]} is whole, go on from it" if others else ""
        raise BadCheckpoint(f"{error}{advice}") from error


def check_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, once it is found to be whole and of the step that its name says.

    Raises:
        BadCheckpoint: it is not.
    """
    content = read_content(path)
    named = CHECKPOINT_NAME.fullmatch(path.name)
    if named and int(named.group(1)) != content.get("global_step"):
        raise BadCheckpoint(
            f"{path} is another checkpoint than its name says: it is of step {content.get('global_step')}"
        )
    return content


def _newest_good(folder: Path) -> Found | None:
    damaged: list[str] = []
    for _, path in reversed(list_checkpoints(folder)):
        try:
            found = Found(path, check_checkpoint(path))
        except BadCheckpoint as error:
            damaged.append(str(error))
            continue
        if damaged:
            logger.warning("%s; going on from the older %s", "; ".join(damaged), path)
        return found
    if damaged:
        raise BadCheckpoint(
            f"{damaged[0]}; {folder} holds no other checkpoint that is whole; start anew with --overwrite true"
        )
    logger.warning("no checkpoint in %s yet: starting from scratch", folder)
    return None


def _is_good(path: Path) -> bool:
    try:
        check_checkpoint(path)
    except BadCheckpoint:
        return False
    return True


def set_aside_later(folder: Path, path: Path) -> None:
    """Rename the checkpoints of later steps than the one that a run goes on from: they are not of its future, "last" must not find them."""
    found = {other.resolve(): step for step, other in list_checkpoints(folder)}
    if path.resolve() in found:
        for other, step in found.items():
            if step > found[path.resolve()]:
                kept = other.with_name(other.name + SET_ASIDE)
                other.replace(kept)
                logger.warning("%s is of a later step than this run goes on from; it is now %s", other, kept.name)
