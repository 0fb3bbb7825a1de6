"""The transformer, its configuration and its cache; importing it makes the first two known to transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from emu.model.cache import StaticCache
from emu.model.model import EmuForCausalLM, EmuModel
from emu.model_config import EmuConfig

AutoConfig.register(EmuConfig.model_type, EmuConfig)
AutoModelForCausalLM.register(EmuConfig, EmuForCausalLM)

__all__ = ["EmuConfig", "EmuForCausalLM", "EmuModel", "StaticCache"]
