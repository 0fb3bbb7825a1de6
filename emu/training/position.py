"""Where a run stands, as a few integers in a checkpoint, and Lightning's loops put there again.

A position is always that between two optimizer steps: inside a step it is the step's first batch, since no gradients are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer


def position(trainer: Trainer) -> dict[str, Any]:
    """The position of a run whose last batch was trained on.

    Returns:
        batches (trained on so far), batch (of these in this epoch), epoch, steps (of the optimizer), and the states of the loaders.
    """
    loop = trainer.fit_loop
    inside = loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches
    batch = loop.epoch_loop.batch_progress.current.ready - inside
    epoch = loop.epoch_progress.current.ready - 1
    if batch >= loop.max_batches:
        batch, epoch = 0, epoch + 1
    return {
        "batches": loop.epoch_loop.batch_progress.total.ready - inside,
        "batch": batch,
        "epoch": epoch,
        "steps": trainer.global_step,
        "loaders": loop.state_dict()["state_dict"].get("combined_loader", []),
    }


def loops_at(trainer: Trainer, place: Mapping[str, Any]) -> dict[str, Any]:
    """The state of Lightning's loops, as its own checkpoints hold it, at a position."""
    loops = {
        name: getattr(trainer, name).state_dict() for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    }
    fit = loops["fit_loop"]
    fit["state_dict"]["combined_loader"] = list(place["loaders"])
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = place["steps"]
    begun = _counts(place["epoch"]) | dict.fromkeys(("ready", "started"), place["epoch"] + 1)
    fit["epoch_progress"] = {"total": begun, "current": begun}
    batches = {"total": _counts(place["batches"]), "current": _counts(place["batch"]), "is_last_batch": False}
    fit["epoch_loop.batch_progress"] |= batches
    steps = {"total": {"ready": place["steps"], "completed": place["steps"]}, "current": {"ready": 0, "completed": 0}}
    if trainer.lightning_module.automatic_optimization:
        fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = steps
    else:
        fit["epoch_loop.manual_optimization.optim_step_progress"] = steps
    fit["epoch_loop.scheduler_progress"] = steps
    return loops


def catch_up(trainer: Trainer) -> None:
    """Run the validation that was due at the position that a run goes on from, and let Lightning count from there.

    Checkpoints are written after an optimizer step and before the validation that follows it, so that it is always still owed.
    """
    loop = trainer.fit_loop.epoch_loop
    due_by_count = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    if due_by_count:  # Lightning takes the first batch for one that ends a step, and skips its validation
        loop._batches_that_stepped -= 1
    if _validation_is_owed(trainer):
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True


def _validation_is_owed(trainer: Trainer) -> bool:
    progress, every = trainer.fit_loop.epoch_loop.batch_progress, trainer.check_val_every_n_epoch
    done, interval = progress.total.ready, trainer.val_check_batch
    if not trainer.enable_validation or not done or interval is None or interval == float("inf"):
        return False
    if every is None:
        return done % interval == 0
    batch, epoch = progress.current.ready, trainer.current_epoch
    if batch == 0:  # at the end of the epoch before
        batch, epoch = int(trainer.num_training_batches), epoch - 1
    return (epoch + 1) % every == 0 and batch % interval == 0


def _counts(number: int) -> dict[str, int]:
    return {"ready": number, "completed": number, "started": number, "processed": number}
