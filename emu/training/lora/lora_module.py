"""Fine-tuning a released model with low-rank adapters (LoRA, arXiv 2106.09685), through PEFT.

    emu fit --config lora-emu3 --model.pretrained Emu3-Gen --data.sources.mine shards

The base model stays frozen in its own precision; only the adapters learn. What is exported is the adapter: `model.load_adapter(folder)`
puts it on the base model again, and `Emu.from_pretrained(folder)` reads both. `merge: true` exports a whole model instead.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from emu.checkpoints.bundled import find_model_folder
from emu.families.language import read_emu_config
from emu.model import EmuForCausalLM
from emu.model_settings import read_settings, write_settings
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.training.lora.adapters import (
    PROJECTIONS,
    add_adapters,
    is_mixed,
    merge_adapters,
    without_dropout,
)
from emu.training.module import NEXT_TOKEN, EmuModule
from emu.training.objectives import Objective
from emu.training.vocabularies import check_vocabulary
from emu.vocabulary import Vocabulary
from emu_tokenizers.training.schedules import OptimizerOptions
from emu_tokenizers.training.spikes import SpikeOptions

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
        optimizer, max_grad_norm, max_skipped_steps, objective, spikes, compile, average_decay, peak_flops: see `EmuModule`; the average is
            that of the adapters.
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
        objective: Objective = NEXT_TOKEN,
        spikes: SpikeOptions | None = None,
        compile: bool = False,
        average_decay: float = 0.0,
        peak_flops: float | None = None,
    ) -> None:
        super().__init__(
            pretrained=pretrained,
            optimizer=optimizer,
            max_grad_norm=max_grad_norm,
            max_skipped_steps=max_skipped_steps,
            objective=objective,
            spikes=spikes,
            checkpointing="full" if checkpointing else "none",
            compile=compile,
            average_decay=average_decay,
            peak_flops=peak_flops,
        )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, tuple(targets)
        self.base_dtype, self.merge = dtype, merge
        self.strict_loading = False  # checkpoints hold the adapters alone

    def build_model(self, vocabulary: Vocabulary | None) -> EmuForCausalLM:
        """The base model, frozen, with adapters; see `EmuModule`."""
        assert self.pretrained is not None
        config = without_dropout(read_emu_config(find_model_folder(self.pretrained)))
        check_vocabulary(config, vocabulary)
        model = EmuForCausalLM.from_pretrained(self.pretrained, config=config, dtype=DTYPES[self.base_dtype])
        add_adapters(model, self.rank, self.alpha, self.dropout, self.targets, is_mixed(self._trainer))
        return model

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
        """Take the average of the adapters, and add them to the weights where that is asked for, before the model is exported."""
        super().on_fit_end()
        if self.merge and self.model is not None:
            merge_adapters(self.model)

    def complete_export(self, folder: Path) -> None:
        """Put the generation defaults of the base model beside what is exported; what it is trained for now is the user's to say."""
        assert self.pretrained is not None
        settings = read_settings(find_model_folder(self.pretrained))
        if settings is not None and (folder / TOKENIZER_FILE).is_file():
            write_settings(folder, settings.generation, settings.fingerprints)
