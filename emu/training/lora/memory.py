"""How much memory a card needs to fine-tune a model with adapters, found by a training step on tensors that hold no numbers.

    memory = lora_memory(EmuConfig(...), row_length=8448)
    memory.total / 2**30

Every tensor of the step is counted while it lives: weights, adapters with gradients and moments, kept and recomputed activations,
temporaries. What a device adds is not: its context (about half a GiB on CUDA), rounding by its allocator, and the workspace inside
kernels, of which `WORKSPACE` is an upper bound for the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from emu.checkpoints.bundled import find_model_folder
from emu.configuration.problems import raise_problems
from emu.families.language import read_emu_config
from emu.model import EmuConfig, EmuForCausalLM
from emu.training.blocks import checkpoint_blocks
from emu.training.cli import EmuCLI
from emu.training.live_bytes import LiveBytes, default_dtype, give_memory, num_bytes_of
from emu.training.lora.adapters import PROJECTIONS, add_adapters, is_mixed, without_dropout
from emu.training.lora.lora_module import DTYPES, LoraModule
from emu.training.module import EmuModule
from emu.training.preflight import settings_problems

WORKSPACE = 2**28
"""Bytes that the loss may need beside its tensors."""


@dataclass(frozen=True)
class LoraMemory:
    """Bytes of a training step.

    Attributes:
        weights: of the frozen model.
        adapters: with their gradients, the two moments of AdamW and, where one is kept, their moving average.
        activations: the most that lives beside them at once.
    """

    weights: int
    adapters: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, with `WORKSPACE`."""
        return self.weights + self.adapters + self.activations + WORKSPACE


def lora_memory(
    config: EmuConfig,
    *,
    row_length: int,
    rows: int = 1,
    rank: int = 16,
    dropout: float = 0.05,
    targets: Sequence[str] = PROJECTIONS,
    dtype: torch.dtype = torch.bfloat16,
    mixed: bool = True,
    checkpointing: bool = True,
    average: bool = False,
) -> LoraMemory:
    """The memory of a step of `LoraModule` on rows of packed tokens.

    Args:
        config: of the base model.
        row_length, rows: tokens of a row, and rows of a batch.
        rank, dropout, targets: of the adapters.
        dtype: of the frozen weights.
        mixed: products run in bfloat16 (`trainer.precision: bf16-mixed`).
        checkpointing: see `LoraModule`.
        average: whether a moving average of the adapters is kept.
    """
    with torch.device("meta"), default_dtype(dtype):
        model = EmuForCausalLM(without_dropout(EmuConfig.from_dict(config.to_dict())))
        add_adapters(model, rank, 2.0 * rank, dropout, targets, mixed)
    with FakeTensorMode():
        give_memory(model)
        weights = sum(num_bytes_of(parameter) for parameter in model.parameters() if not parameter.requires_grad)
        if checkpointing:
            checkpoint_blocks(model, "full")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        own = sum(num_bytes_of(parameter) for parameter in trained)
        model.train()
        ids = torch.zeros(rows, row_length, dtype=torch.int64)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            model(ids, labels=ids, segment_ids=torch.ones_like(ids)).loss.backward()
        gradients = sum(num_bytes_of(parameter.grad) for parameter in trained if parameter.grad is not None)
    return LoraMemory(weights, (5 if average else 4) * own, max(0, live.peak - gradients))


def needed_memory(arguments: Sequence[str]) -> tuple[LoraMemory, int]:
    """The memory that a recipe of adapters needs for one row at a time, and the length of its rows.

    Args:
        arguments: the words after `emu fit`.

    Raises:
        ValueError, FileNotFoundError: the configuration cannot work, or trains another module than `LoraModule`.
    """
    cli = EmuCLI(EmuModule, arguments)
    module = cli.model
    if not isinstance(module, LoraModule):
        raise ValueError(f"the memory of {type(module).__name__} is not computed; only that of LoraModule is")
    raise_problems(settings_problems(cli.trainer, module, cli.datamodule), cli.parsed.written)
    length = int(cli.datamodule.row_length)
    memory = lora_memory(
        read_emu_config(find_model_folder(str(module.pretrained))),
        row_length=length,
        rank=module.rank,
        dropout=module.dropout,
        targets=module.targets,
        dtype=DTYPES[module.base_dtype],
        mixed=is_mixed(cli.trainer),
        checkpointing=module.checkpointing == "full",
        average=bool(module.average_decay),
    )
    return memory, length
