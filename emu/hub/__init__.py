"""Whole models of any family: loading, conversion, a processor; importing it makes the processor known to transformers' `AutoProcessor`.

With `emu.model`, which comes along, `AutoConfig`, `AutoModelForCausalLM` and `AutoProcessor` open folders of this library after
`import emu.hub`.
"""

from __future__ import annotations

from transformers import AutoProcessor

from emu.hub.processor import EmuProcessor
from emu.model import EmuConfig

AutoProcessor.register(EmuConfig, EmuProcessor)  # type: ignore[no-untyped-call]

__all__ = ["EmuProcessor"]
