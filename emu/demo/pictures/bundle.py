"""Put a trained model of the demo among the bundled ones: python -m emu.demo.pictures.bundle RUN

RUN is what `emu demo pictures --output RUN` wrote. The transformer's weights are rounded to float16, which halves them; the figures beside
the model are measured anew on what is bundled. Maintainers run this in a checkout; `Emu.from_pretrained("pictures")` reads the result.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from emu.checkpoints.bundled import BUNDLED
from emu.demo.pictures.emoji_report import EmojiReport
from emu.demo.pictures.pictures_run import METRICS, STORE
from emu.pipeline import Emu

NAME = "pictures"
MOST_BYTES = 12_000_000


def bundle(run: Path, folder: Path = BUNDLED / NAME) -> int:
    """Write the bundled model of a run.

    Args:
        run: folder of a finished run.
        folder: of the bundled model.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: the run has no model.
        ValueError: the bundled model would be larger than 12 MB.
    """
    emu = Emu.from_pretrained(run / "model", device="cpu")
    with tempfile.TemporaryDirectory() as name:
        rounded = Path(name) / NAME
        emu.model.to(torch.float16)  # type: ignore[arg-type]
        emu.save_pretrained(rounded)
        size = sum(file.stat().st_size for file in rounded.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise ValueError(f"the model takes {size:,} bytes; expected {MOST_BYTES:,} at most, train a smaller one")
        EmojiReport(str(rounded), str(run / STORE)).run(Path(name) / "report")
        shutil.copy(Path(name) / "report" / METRICS, rounded / METRICS)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(rounded, folder)
    return size


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m emu.demo.pictures.bundle", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that emu demo pictures wrote")
    options = parser.parse_args(arguments)
    print(f"{bundle(options.run):,} bytes in {BUNDLED / NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
