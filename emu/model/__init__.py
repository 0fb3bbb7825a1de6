"""The transformer, its configuration and its cache."""

import importlib

from transformers import AutoConfig, AutoModelForCausalLM

from emu.model.cache import StaticCache
from emu.model.model import EmuForCausalLM, EmuModel
from emu.model_config import EmuConfig

AutoConfig.register(EmuConfig.model_type, EmuConfig)
AutoModelForCausalLM.register(EmuConfig, EmuForCausalLM)
importlib.import_module("emu.hub.processor")  # registers with AutoProcessor; a floor above, so by its name

__all__ = ["EmuConfig", "EmuForCausalLM", "EmuModel", "StaticCache"]
