"""Excess over the known entropies of worlds as a model trains, and samples of what it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from emu.evaluation.calibration import TaskScore, score_task
from emu.evaluation.models import ModelSample, ModelScore
from emu.generation import Engine
from emu.model import EmuForCausalLM
from emu.training.samples import as_validated, with_whole_model
from emu.worlds import HELD_OUT, BallWorld, RequestWorld
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import WorldsData


class ExcessCurves(Callback):
    """Scores fresh held-out documents of every trained task now and then: curves "excess/..." in bits, a line above the progress bar.

    Args:
        every_n_steps: steps between two scores.
        documents: of each task, 30 or more.
        samples: pictures and clips drawn for `samples.png` in the run's folder each time; 0 for none.
    """

    def __init__(self, every_n_steps: int = 250, documents: int = 64, samples: int = 8) -> None:
        self.every_n_steps, self.num_documents, self.samples = every_n_steps, documents, samples
        self._last = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score at every multiple of `every_n_steps`, in the first process, the weights that are validated."""
        if trainer.global_step % self.every_n_steps or trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        with as_validated(pl_module), with_whole_model(pl_module, trainer):
            if trainer.is_global_zero:
                self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: WorldsData = trainer.datamodule  # type: ignore[attr-defined]
        model = pl_module.model
        assert isinstance(model, EmuForCausalLM)
        scores = self.scores(model, data)
        row = {f"excess/{name}": score.excess.value for name, score in scores.items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        words = [f"{name} {score.excess.value:.2f} of {score.floor:.2f}" for name, score in scores.items()]
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(
                f"step {trainer.global_step}, bits above the floor: " + ", ".join(words)
            )
        if self.samples:
            write_samples(model, data.documents, self.samples, Path(trainer.default_root_dir) / "samples.png")

    def scores(self, model: EmuForCausalLM, data: WorldsData) -> dict[str, TaskScore]:
        """Scores of the tasks that the mixture holds."""
        found = {}
        for name in data.source_names:
            world, task = name.split("/")
            documents = data.documents[world]
            found[name] = score_task(documents.world, task, ModelScore(model, documents), self.num_documents)
        return found


def write_samples(
    model: EmuForCausalLM, documents: Mapping[str, WorldDocuments], count: int, file: Path, scale: int = 3
) -> None:
    """Answers to held-out prompts at guidance 1: a row for each world of pictures, for clips one for each frame.

    Above answers to requests stands a row of the pictures that were to be changed.
    """
    rows: list[np.ndarray] = []
    for some in documents.values():
        task = next(iter(some.world.tasks))
        given = some.world.draw(1, count, HELD_OUT).values(some.world.task(task).given)
        if isinstance(some.world, RequestWorld):
            rows.append(_row(some.world.render(some.world.sources_of(task, given), some.size)))
        pixels = some.pixels(ModelSample(Engine(model, some.tokenizer.layout), some).codes(task, given, seed=0))
        rows += [_row(frame) for frame in (pixels.swapaxes(0, 1) if isinstance(some.world, BallWorld) else [pixels])]
    picture = np.concatenate(rows).repeat(scale, 0).repeat(scale, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


def _row(pictures: Sequence[np.ndarray] | np.ndarray, gap: int = 2) -> np.ndarray:
    """(H + 2, n (W + 2), 3) pictures beside each other on white."""
    return np.concatenate([np.pad(one, ((0, gap), (0, gap), (0, 0)), constant_values=255) for one in pictures], axis=1)
