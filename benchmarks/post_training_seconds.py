"""Processor seconds of a step of `emu fit`: `python benchmarks/post_training_seconds.py FILE fit --config shapes-grpo ...`.

The first steps are left out; the median of the rest is written. Documents are drawn in the same process, so that they count.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

from timed_training import timed_training

STEPS, SKIPPED = 12, 3


def main(file: Path, words: list[str]) -> None:
    """Train for a few steps and write what one of them takes."""
    seconds = timed_training([*words, "--trainer.max_steps", str(STEPS)]).seconds(SKIPPED)
    file.write_text(json.dumps({"seconds": median(seconds), "steps": len(seconds)}) + "\n")
    print(f"{median(seconds):.3f} processor seconds a step")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [word for word in sys.argv[2:] if word != "fit"])
