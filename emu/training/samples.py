"""Samples of what a model makes as it trains: in the run's folder, and in every logger that shows pictures.

    trainer:
      callbacks:
        - class_path: emu.evaluation.training_samples.DrawSamples        # or Reconstructions of emu.training.reconstructions
          init_args: {every_n_steps: 500, images: [a handwritten seven]}

A run is the same, bit for bit, with and without them.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emu.media import gif_bytes, png_bytes
from emu.model import EmuForCausalLM
from emu.training.loggers import Sample, show_samples
from emu.training.parallel import is_sharded, whole_state
from emu.training.sharded_start import build_empty
from emu_tokenizers.files import new_folder, read_json, write_json

SAMPLES_FOLDER, SAMPLES_FILE = "samples", "samples.json"
PRODUCTS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's word for a precision -> dtype of products, where it is another one than that of the weights."""


class SampleCallback(Callback, ABC):
    """Makes samples every N steps; subclasses say which.

    They are made by the first process alone, from the weights that are validated, and draw no random numbers from the run's generators.
    Where the weights are split over ranks it holds all of them for that time, in the dtype of the run's products.

    Args:
        every_n_steps: steps between two sets of samples.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; expected 1 or more")
        self.every_n_steps = every_n_steps
        self._last = -1

    @abstractmethod
    def draw(self, trainer: Trainer, module: LightningModule) -> Sequence[Sample]:
        """The samples of a step; the model is in evaluation mode."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget samples of steps that are not of this run's past, and make those of the step that it starts from.

        What is wrong with a prompt or an option is found so before the first step.
        """
        if trainer.is_global_zero:
            for step, folder in sample_folders(Path(trainer.default_root_dir)):
                if step > trainer.global_step or not trainer.global_step:
                    shutil.rmtree(folder)
        self._make(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make samples where they are due."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._last:
            self._make(trainer, pl_module)

    def _make(self, trainer: Trainer, module: LightningModule) -> None:
        self._last = step = trainer.global_step
        with as_validated(module), with_whole_model(module, trainer):
            samples = self.draw(trainer, module) if trainer.is_global_zero else ()
        if trainer.is_global_zero:
            write_samples(Path(trainer.default_root_dir), step, samples)
            show_samples(trainer.loggers, samples, step)


@contextmanager
def as_validated(module: LightningModule) -> Iterator[None]:
    """A module in evaluation mode, with the average of its weights where it has one, not compiled, and with generators of its own."""
    average = getattr(module, "weight_average", None)
    was_training = {part: part.training for part in module.modules()}
    with ExitStack() as stack:
        devices = [module.device] if module.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # each length of a sample would be compiled
        if average is not None:
            average.use()
            stack.callback(average.put_back)
        module.eval()
        try:
            yield
        finally:
            for part, training in was_training.items():
                part.training = training


@contextmanager
def with_whole_model(module: LightningModule, trainer: Trainer) -> Iterator[None]:
    """Let the first process have the whole model in `module.model` where it is split over ranks; all of them must come here."""
    split = getattr(module, "model", None)
    if not (isinstance(split, EmuForCausalLM) and is_sharded(split)):
        yield
        return
    weights = whole_state(split)
    if trainer.is_global_zero:
        module.model = put_together(split, weights, PRODUCTS.get(str(trainer.precision)))
    del weights
    try:
        yield
    finally:
        module.model = split


@torch.no_grad()
def put_together(split: EmuForCausalLM, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> EmuForCausalLM:
    """A model like one that is split, in evaluation mode on its device, with all weights.

    Args:
        split: the other one.
        weights: see `emu.training.parallel.whole_state`.
        dtype: of its weights; None for that of `weights`.
    """

    def narrow(model: EmuForCausalLM) -> None:
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(dtype or weights[name].dtype)

    whole = build_empty(split.config, narrow, split.device)
    for name, weight in whole.named_parameters():
        weight.copy_(weights[name])
    return whole.eval()


def sample_folders(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the samples of a run, oldest first."""
    folders = [path for path in (run / SAMPLES_FOLDER).glob("step=*") if path.name.removeprefix("step=").isdigit()]
    return sorted((int(path.name.removeprefix("step=")), path) for path in folders)


def write_samples(run: Path, step: int, samples: Sequence[Sample]) -> None:
    """Write the samples of a step into a folder of their own: PNG and GIF files, and `samples.json`, which lists them and holds texts."""
    table: dict[str, dict[str, str]] = {}
    with new_folder(run / SAMPLES_FOLDER / f"step={step:08d}") as folder:
        for sample in samples:
            table[sample.name] = {"prompt": sample.prompt, "text": sample.text}
            if sample.frames:
                file = f"{sample.name}.{'gif' if len(sample.frames) > 1 else 'png'}"
                content = (
                    gif_bytes(sample.frames, sample.fps) if len(sample.frames) > 1 else png_bytes(sample.frames[0])
                )
                (folder / file).write_bytes(content)
                table[sample.name]["file"] = file
        write_json(folder / SAMPLES_FILE, table)


def read_samples(folder: Path) -> dict[str, dict[str, str]]:
    """What `write_samples` wrote of a step: name -> prompt, text, and the file where there is one."""
    return read_json(folder / SAMPLES_FILE) if (folder / SAMPLES_FILE).is_file() else {}
