"""One line that shows where a run is: step of all steps, rate, time left, loss."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SECONDS_TO_FILES = 15.0
SECONDS_TO_TERMINALS = 0.5


class StepProgressBar(ProgressBar):
    """Counts optimizer steps over the whole run, not batches of an epoch; reads the loss only when it redraws.

    Args:
        description: word in front of the bar.
        seconds: least time between two drawings; by default half a second on a terminal, and 15 s elsewhere.
    """

    def __init__(self, description: str = "train", seconds: float | None = None) -> None:
        super().__init__()
        self._description = description
        self._seconds = seconds
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Draw nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Draw."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        tqdm.write(" ".join(str(arg) for arg in args), file=sys.stderr)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where the run starts or goes on."""
        if not self._enabled or not trainer.is_global_zero:
            return
        seconds = self._seconds
        if seconds is None:
            seconds = SECONDS_TO_TERMINALS if sys.stderr.isatty() else SECONDS_TO_FILES
        self._bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc=self._description,
            unit="step",
            mininterval=seconds,
            miniters=1,
            maxinterval=max(10.0, seconds),
            smoothing=0.05,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; on a redraw, show the loss of this step."""
        bar = self._bar
        if bar is None or trainer.global_step == bar.n:
            return
        if time.time() - bar.last_print_t >= bar.mininterval:
            loss = latest_loss(trainer, outputs)
            bar.set_postfix_str("" if loss is None else f"loss {loss:.4f}", refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def latest_loss(trainer: Trainer, outputs: Any) -> float | None:
    """The loss that the last batch of the step returned, or else one that the module logged for the progress bar, or None."""
    if isinstance(outputs, dict) and "loss" in outputs:
        return float(outputs["loss"]) * trainer.accumulate_grad_batches  # by which Lightning has divided it
    logged = trainer.progress_bar_metrics
    return next((float(logged[name]) for name in ("train/loss", "loss") if name in logged), None)
