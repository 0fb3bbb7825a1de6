"""What of a recipe a plan rests on, read without its data and on another machine than the one that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emu.checkpoints.bundled import find_model_folder
from emu.configuration.problems import raise_problems
from emu.families.language import read_emu_config
from emu.model import EmuConfig
from emu.stopping import say
from emu.training.cli import EmuCLI
from emu.training.lora.lora_module import LoraModule
from emu.training.module import EmuModule
from emu.training.module_class import build_apart
from emu.training.preflight import settings_problems
from emu.training.vocabularies import with_vocabulary

SHARDED = "ModelParallelStrategy"
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "64-true": (torch.float64, None),
    "32-true": (torch.float32, None),
}
"""Lightning's word -> dtype of weights, and of products where that is another one."""


@dataclass(frozen=True)
class RunFacts:
    """A run in numbers.

    Attributes:
        module: built, without its model.
        config: of the model.
        rows, row_length: of a batch over all processes, in positions.
        accumulation: batches of an optimizer step.
        max_steps: optimizer steps; -1 where nothing is said.
        processes: that the recipe asks for; 1 where it leaves that open.
        on_cpu: whether it trains on processors.
        sharded: whether weights are split over the processes.
        weights, mixed: dtype of weights, and of products where that is another one.
    """

    module: EmuModule
    config: EmuConfig
    rows: int
    row_length: int
    accumulation: int
    max_steps: int
    processes: int
    on_cpu: bool
    sharded: bool
    weights: torch.dtype
    mixed: torch.dtype | None

    @property
    def tokens_per_step(self) -> int:
        """Positions of an optimizer step, padding among them."""
        return self.rows * self.row_length * self.accumulation


class PlanCLI(EmuCLI):
    """Reads the configuration of a run, and builds neither data nor a trainer for this machine.

    Attributes:
        parts: what could be built, by "model", "data" and "trainer".
    """

    parts: dict[str, Any]

    def instantiate_classes(self) -> None:
        """Build the parts one by one; a trainer for cards that are not here stays its settings."""
        self.parts, found = build_apart(self.parser, self.config)
        found = [problem for problem in found if problem.path != ("trainer",)]
        told = settings_problems(self.config.trainer, self.parts.get("model"), self.parts.get("data"))
        self._refuse([*found, *told])


def read_facts(arguments: Sequence[str]) -> RunFacts:
    """The facts of a recipe.

    Args:
        arguments: the words after `emu fit`.

    Raises:
        ValueError, FileNotFoundError: the configuration cannot work, or how many rows a batch has is not known.
    """
    cli = PlanCLI(EmuModule, arguments)
    module, data, trainer = cli.parts["model"], cli.parts["data"], cli.config.trainer
    if not isinstance(module, EmuModule) or isinstance(module, LoraModule):
        raise_problems(
            [
                f"model is {type(module).__name__}; a plan is made for an EmuModule that trains all of its weights (what adapters take, "
                "emu fit --memory says)"
            ]
        )
    rows, row_length = _batch(data)
    weights, mixed = PRECISIONS.get(str(trainer.precision or "32-true"), PRECISIONS["32-true"])
    return RunFacts(
        module,
        _model_config(module, data),
        rows,
        row_length,
        int(trainer.accumulate_grad_batches),
        int(trainer.max_steps),
        _count(trainer.devices) * _count(trainer.num_nodes),
        str(trainer.accelerator) == "cpu",
        SHARDED in str(getattr(trainer.strategy, "class_path", trainer.strategy)),
        weights,
        mixed,
    )


def _model_config(module: EmuModule, data: Any) -> EmuConfig:
    """The configuration of the model, with the size of the data's vocabulary where the data is there."""
    place = module.pretrained or (module.init_from if module.config is None else None)
    config = module.config if place is None else read_emu_config(find_model_folder(place))
    assert config is not None
    try:
        vocabulary = data.vocabulary
    except (FileNotFoundError, ValueError):  # not made yet, or on another machine
        return config
    return with_vocabulary(config, vocabulary) if place is None else config


def _batch(data: Any) -> tuple[int, int]:
    """Rows of a batch over all processes, and positions of a row.

    Raises:
        ValueError: the rows depend on documents that are not there.
    """
    rows = getattr(data, "rows_per_step", None)
    if rows is not None:
        return int(rows), int(data.row_length)
    say("reading the data, since how many rows a batch has depends on its documents; data.rows_per_step would say it")
    try:
        data.prepare_data()
        batch = next(iter(data.train_dataloader()))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"how many rows a batch has depends on the documents, which cannot be read: {error}; give data.rows_per_step, or run this "
            "where the data is"
        ) from error
    return batch.input_ids.shape[0], batch.input_ids.shape[1]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
