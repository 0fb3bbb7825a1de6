"""Low-rank adapters (arXiv 2106.09685) on the projections of a transformer, through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emu.model import EmuConfig, EmuForCausalLM

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(
    model: EmuForCausalLM, rank: int, alpha: float, dropout: float, targets: Sequence[str], mixed: bool
) -> None:
    """Freeze a model and put float32 adapters on its projections; with autocast (`mixed`) their input stays as it is."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    model.requires_grad_(False)
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    model.add_adapter(LoraConfig(**settings, target_modules=list(targets)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = not mixed  # a float32 copy of every input, which autocast rounds again


def without_dropout(config: EmuConfig) -> EmuConfig:
    """The configuration with the base model's own dropout switched off; adapters have theirs."""
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        setattr(config, name, 0.0)
    return config


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


def is_mixed(trainer: Any) -> bool:
    """Whether products run in lower precision than the weights that learn; None for no trainer."""
    return str(getattr(trainer, "precision", "")).endswith("-mixed")
