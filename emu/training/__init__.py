"""Training under Lightning; `emu.training.cli.fit` is `emu fit` as a function."""

from emu.training.module import EmuModule
from emu_tokenizers.training.schedules import OptimizerOptions

__all__ = ["EmuModule", "OptimizerOptions"]
