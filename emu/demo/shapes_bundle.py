"""Put a trained model of the recipe shapes-edit among the bundled ones: python -m emu.demo.shapes_bundle RUN

RUN is what `emu fit --config shapes-edit` wrote. Figures of the suites of requests are measured on what is bundled, weights in float16.
Maintainers run this in a checkout; `Emu.from_pretrained("shapes")` reads the result.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from emu.checkpoints.bundled import BUNDLED
from emu.demo.bundling import bundle_command, write_bundled
from emu.evaluation.suites import find_suite
from emu.evaluation.suites.worlds import SuiteOptions
from emu.model_settings import write_settings
from emu.pipeline import Emu
from emu.stopping import say
from emu.worlds.training_data import WORLDS_FILE

NAME = "shapes"
MOST_BYTES = 5_000_000
SUITES = ("edits", "examples", "fills", "rates")
SAMPLES = 1000
"""Answers to each kind of request and seed: as many as the tests of hidden rectangles need."""


def bundle(run: Path, folder: Path = BUNDLED / NAME, samples: int = SAMPLES) -> int:
    """Write the bundled model of a run; errors are those of `write_bundled`.

    Args:
        run: folder of a finished run.
        folder: of the bundled model.
        samples: answers to each kind of request and seed; none leaves the figures out.

    Returns:
        Its size in bytes.
    """

    def finish(rounded: Path, emu: Emu) -> dict[str, float]:
        shutil.copy(run / "model" / WORLDS_FILE, rounded)
        write_settings(rounded, emu.defaults.to_dict(), emu.tokenizer.fingerprints, emu.trained)  # lists that file too
        return measure(rounded, samples) if samples else {}

    return write_bundled(run / "model", folder, MOST_BYTES, finish)


def measure(model: Path, samples: int) -> dict[str, float]:
    """Figures of the suites of requests, by name."""
    options = vars(SuiteOptions(samples=samples))
    request = argparse.Namespace(model=str(model), **options)
    figures: dict[str, float] = {}
    for name in SUITES:
        suite = find_suite(name)
        figures |= suite.run(suite.prepare(request), say).figures
    return dict(sorted(figures.items()))


if __name__ == "__main__":
    sys.exit(
        bundle_command(
            sys.argv[1:],
            "python -m emu.demo.shapes_bundle",
            __doc__,
            "emu fit --config shapes-edit",
            bundle,
            BUNDLED / NAME,
        )
    )
