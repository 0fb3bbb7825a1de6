"""Processor seconds of a step of `emu fit`: `python benchmarks/post_training_seconds.py FILE fit --config shapes-grpo ...`.

The first steps are left out; the median of the rest is written. Documents are drawn in the same process, so that they count.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from emu.training.cli import EmuCLI
from emu.training.module import EmuModule

STEPS, SKIPPED = 12, 3


class TimedModule(EmuModule):
    """Notes the processor time at the end of each step."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())


def main(file: Path, words: list[str]) -> None:
    """Train for a few steps and write what one of them takes."""
    with tempfile.TemporaryDirectory() as folder:
        changed = ["--trainer.max_steps", str(STEPS), "--trainer.default_root_dir", folder, "--export", "null"]
        changed += ["--trainer.enable_progress_bar", "false"]
        module = EmuCLI(TimedModule, [*words, *changed]).fit()
        assert isinstance(module, TimedModule)
    spans = [after - before for before, after in pairwise(module.ends[SKIPPED:])]
    file.write_text(json.dumps({"seconds": median(spans), "steps": len(spans)}) + "\n")
    print(f"{median(spans):.3f} processor seconds a step")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [word for word in sys.argv[2:] if word != "fit"])
