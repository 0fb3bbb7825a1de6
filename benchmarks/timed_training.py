"""Training for some steps from a command line of `emu fit`, with the processor time of each step."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from typing import Any

from emu.training.cli import EmuCLI
from emu.training.module import EmuModule


class TimedModule(EmuModule):
    """Notes the processor time at the end of each step."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())

    def seconds(self, skipped: int) -> list[float]:
        """Processor seconds of each step but the first ones."""
        return [end - begin for begin, end in pairwise(self.ends[skipped:])]


def timed_training(words: list[str]) -> TimedModule:
    """Train as `emu fit` does with these words, in a folder that does not stay and without an exported model."""
    with tempfile.TemporaryDirectory() as folder:
        kept = ["--trainer.default_root_dir", folder, "--export", "null", "--trainer.enable_progress_bar", "false"]
        module = EmuCLI(TimedModule, [*words, *kept]).fit()
    assert isinstance(module, TimedModule)
    return module
