"""Low-rank adapters (LoRA) on a frozen model."""

from emu.training.lora.lora_module import LoraModule

__all__ = ["LoraModule"]
