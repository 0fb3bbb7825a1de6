"""`emu evaluate`: measure a trained model where the right answers are known exactly.

emu evaluate runs/shapes/model --suite calibration
emu evaluate runs/shapes/model --suite shapes --guidance-scale 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUITE_NAMES = ("calibration", "shapes", "video")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    found = argparse.ArgumentParser(
        "emu evaluate", description="Measure a model that was trained on worlds with known answers."
    )
    found.add_argument("model", help="folder of the model, e.g. runs/shapes/model")
    found.add_argument(
        "--suite", choices=SUITE_NAMES, default="calibration", help="what to measure (default: %(default)s)"
    )
    found.add_argument("--documents", type=int, default=500, help="documents scored per task (default: %(default)s)")
    found.add_argument("--samples", type=int, default=2000, help="samples per test and skill (default: %(default)s)")
    found.add_argument("--guidance-scale", type=float, default=1.0, help="of the skills (default: %(default)s)")
    found.add_argument("--seed", type=int, default=0, help="of documents, prompts and samples (default: %(default)s)")
    found.add_argument(
        "--output",
        type=Path,
        help="folder for <suite>.json, <suite>.png and metrics.json (default: the folder above the model)",
    )
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write.

    Returns:
        0, or 1 where the model's bits lie below what is possible.

    Raises:
        FileNotFoundError, ValueError: the model is missing or of another world, or too few documents or samples; before any work.
    """
    options = parser().parse_args(arguments)
    from emu.evaluation.suites import SUITES, Options, trained_worlds
    from emu.evaluation.summary import add_to_metrics
    from emu.generation import Engine
    from emu.pipeline import Emu

    amounts = Options(options.documents, options.samples, options.guidance_scale, options.seed)
    amounts.check()
    emu = Emu.from_pretrained(options.model)
    documents = trained_worlds(Path(options.model), emu.tokenizer)
    engine = Engine(emu.model, emu.tokenizer.layout)
    found = SUITES[options.suite](emu.model, engine, documents, amounts, print)
    folder = options.output or Path(options.model).resolve().parent
    write(folder, options.suite, found)
    add_to_metrics(folder, found)
    print(f"written to {folder / options.suite}.json; the figures are in {folder / 'metrics.json'} too")
    return int(any(score["impossible"] for score in found.get("scores", [])))


def write(folder: Path, suite: str, found: Mapping[str, Any]) -> None:
    """Write `<suite>.json`, and `<suite>.png` where there is something to draw and matplotlib is installed."""
    from emu.files import write_file

    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{suite}.json", (json.dumps(found, indent=2) + "\n").encode())
    from importlib.util import find_spec

    if find_spec("matplotlib") is not None:
        from emu.evaluation.plots import plot_suite

        plot_suite(suite, found, folder / f"{suite}.png")
