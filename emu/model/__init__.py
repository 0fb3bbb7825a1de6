"""The transformer, its configuration and its cache."""

from transformers import AutoConfig, AutoModelForCausalLM

from emu.model.cache import StaticCache
from emu.model.config import EmuConfig
from emu.model.model import EmuForCausalLM, EmuModel

AutoConfig.register(EmuConfig.model_type, EmuConfig)
AutoModelForCausalLM.register(EmuConfig, EmuForCausalLM)

__all__ = ["EmuConfig", "EmuForCausalLM", "EmuModel", "StaticCache"]
