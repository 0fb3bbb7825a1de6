"""Fine-tuning a released model with low-rank adapters (LoRA, arXiv 2106.09685), through PEFT.

    emu fit-lora --config lora-emu3 --model.pretrained Emu3-Gen --data.sources.mine shards

The base model stays frozen in its own precision; only the adapters learn. What is exported is the adapter: `model.load_adapter(folder)`
puts it on the base model again, and `Emu.from_pretrained(folder)` reads both. `merge: true` exports a whole model instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from emu.checkpoints.bundled import find_model_folder
from emu.configuration.problems import raise_problems
from emu.families.language import read_emu_config
from emu.model import EmuForCausalLM
from emu.model_settings import read_settings, write_settings
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.training.cli import EmuCLI
from emu.training.lora.memory import (
    PROJECTIONS,
    LoraMemory,
    add_adapters,
    checkpoint_blocks,
    lora_memory,
    without_dropout,
)
from emu.training.module import EmuModule
from emu.training.preflight import settings_problems
from emu.training.schedules import OptimizerOptions
from emu.training.vocabularies import check_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoraModule(EmuModule):
    """Adapters on a frozen model in training.

    Args:
        pretrained: folder of the base model, in any format that `EmuForCausalLM.from_pretrained` reads.
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        dropout: of their input.
        targets: projections that get one.
        dtype: of the frozen weights; adapters are float32.
        checkpointing: recompute activations in the backward pass.
        merge: export the base model with the adapters added to its weights.
        optimizer, max_grad_norm, max_skipped_steps: see `EmuModule`.
    """

    def __init__(
        self,
        pretrained: str,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.05,
        targets: tuple[str, ...] = PROJECTIONS,
        dtype: str = "bfloat16",
        checkpointing: bool = True,
        merge: bool = False,
        optimizer: OptimizerOptions = OptimizerOptions(lr=1e-4, weight_decay=0.0),  # noqa: B008 (frozen)
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(
            pretrained=pretrained, optimizer=optimizer, max_grad_norm=max_grad_norm, max_skipped_steps=max_skipped_steps
        )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, tuple(targets)
        self.base_dtype, self.checkpointing, self.merge = dtype, checkpointing, merge
        self.strict_loading = False  # checkpoints hold the adapters alone

    def configure_model(self) -> None:
        """Load the base model, freeze it and add adapters, once."""
        if self.model is not None:
            return
        assert self.pretrained is not None
        vocabulary = getattr(getattr(self._trainer, "datamodule", None), "vocabulary", None)
        config = without_dropout(read_emu_config(find_model_folder(self.pretrained)))
        check_vocabulary(config, vocabulary)
        model = EmuForCausalLM.from_pretrained(self.pretrained, config=config, dtype=DTYPES[self.base_dtype])
        self.config = model.config
        add_adapters(model, self.rank, self.alpha, self.dropout, self.targets, _is_mixed(self._trainer))
        if self.checkpointing:
            checkpoint_blocks(model)
        self.model = model.train()

    def problems(self, trainer: Any) -> list[str]:
        """See `EmuModule`."""
        found = super().problems(trainer)
        if find_spec("peft") is None:
            found.append("adapters need PEFT, which is not installed; run pip install 'emu-tokens[lora]'")
        if str(trainer.precision).endswith("-true") and trainer.precision not in ("32-true", "64-true"):
            found.append(
                f"trainer.precision is {trainer.precision}, which rounds the adapters too; use bf16-mixed: adapters learn in float32, and "
                "the frozen weights have model.dtype anyway"
            )
        if self.base_dtype not in DTYPES:
            found.append(f"model.dtype is {self.base_dtype!r}; expected one of {list(DTYPES)}")
        if self.rank < 1:
            found.append(f"model.rank is {self.rank}; expected 1 or more")
        unknown = sorted(set(self.targets) - set(PROJECTIONS))
        if unknown or not self.targets:
            found.append(f"model.targets {list(self.targets)} should name projections of {list(PROJECTIONS)}")
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained; the base model is where it was."""
        super().on_save_checkpoint(checkpoint)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def on_fit_end(self) -> None:
        """Add the adapters to the weights, if that is asked for, before the model is exported."""
        if self.merge and self.model is not None:
            merge_adapters(self.model)


def merge_adapters(model: EmuForCausalLM) -> None:
    """Add the adapters of a model to its weights and take them away."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config


def _is_mixed(trainer: Any) -> bool:
    return str(getattr(trainer, "precision", "")).endswith("-mixed")


def fit(arguments: Sequence[str]) -> LoraModule:
    """Fine-tune in this process, as `emu fit-lora` does; see `emu.training.cli.fit`.

    The generation defaults of the base model go with what is exported.
    """
    cli = EmuCLI(LoraModule, arguments, name="emu fit-lora")
    module = cli.fit()
    assert isinstance(module, LoraModule) and module.pretrained is not None
    settings = read_settings(find_model_folder(module.pretrained))
    if cli.config.export is not None and settings is not None and cli.trainer.is_global_zero:
        target = cli.folder / cli.config.export
        if (target / TOKENIZER_FILE).is_file():
            write_settings(
                target, settings.generation, settings.fingerprints
            )  # what it is trained for now is the user's to say
    return module


def need(arguments: Sequence[str]) -> tuple[LoraMemory, int]:
    """The memory that a recipe needs for one row at a time, and the length of its rows; see `lora_memory`.

    Raises:
        ValueError, FileNotFoundError: the configuration cannot work.
    """
    cli = EmuCLI(LoraModule, arguments, name="emu fit-lora")
    module = cli.model
    assert isinstance(module, LoraModule)
    raise_problems(settings_problems(cli.trainer, module, cli.datamodule), cli.parsed.written)
    length = int(cli.datamodule.row_length)
    memory = lora_memory(
        read_emu_config(find_model_folder(str(module.pretrained))),
        row_length=length,
        rank=module.rank,
        dropout=module.dropout,
        targets=module.targets,
        dtype=DTYPES[module.base_dtype],
        mixed=_is_mixed(cli.trainer),
        checkpointing=module.checkpointing,
    )
    return memory, length
