"""Put a trained model of the demo among the bundled ones: python -m emu.demo.pictures.bundle RUN

RUN is what `emu demo pictures --output RUN` wrote. The transformer's weights are rounded to float16, which halves them; the figures beside
the model are measured anew on what is bundled. Maintainers run this in a checkout; `Emu.from_pretrained("pictures")` reads the result.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import BUNDLED
from emu.demo.bundling import METRICS, bundle_command, write_bundled
from emu.demo.pictures.emoji_report import EmojiReport
from emu.demo.pictures.pictures_run import STORE
from emu.pipeline import Emu
from emu_tokenizers.files import read_json

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

    def finish(rounded: Path, emu: Emu) -> dict[str, Any]:
        report = rounded.parent / "report"
        EmojiReport(str(rounded), str(run / STORE)).run(report)
        return read_json(report / METRICS)

    return write_bundled(run / "model", folder, MOST_BYTES, finish)


if __name__ == "__main__":
    sys.exit(
        bundle_command(
            sys.argv[1:], "python -m emu.demo.pictures.bundle", __doc__, "emu demo pictures", bundle, BUNDLED / NAME
        )
    )
