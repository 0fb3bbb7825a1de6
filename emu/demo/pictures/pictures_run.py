"""`emu demo pictures`: the job of the recipe `demo-pictures`, and its report in the folder of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu.demo.machine import Clock, few_threads, keep_memory, peak_gib
from emu.training.job import run_job
from emu.training.job_recipe import read_job
from emu_tokenizers.files import read_json, write_file, write_json

RECIPE = "demo-pictures"
METRICS, PAGE = "metrics.json", "report.html"
STORE = "1-pictures"
"""The folder of the recipe's first stage."""


def run_pictures(folder: Path, seed: int = 0, words: Sequence[str] = ()) -> dict[str, Any]:
    """Train, measure and show; a run that was stopped in this folder goes on.

    Args:
        folder: for everything the demo writes; the model is in `model`.
        seed: of both networks and of the drawings.
        words: further options, as of `emu fit --config demo-pictures`.

    Returns:
        The figures, as in `metrics.json`, with what this call took.

    Raises:
        ValueError, FileNotFoundError, Stopped: see `emu.training.job.Job.run`.
    """
    few_threads()
    keep_memory()
    clock = Clock()
    recipe = read_job(["--config", RECIPE, "--trainer.default_root_dir", str(folder), *seeded(seed), *words])
    assert recipe is not None
    run_job(recipe)
    report = folder / recipe.stages[-1].folder
    metrics = {**read_json(report / METRICS), **clock.total(), "peak_gib": round(peak_gib(), 2)}
    write_file(folder / PAGE, (report / PAGE).read_bytes())
    write_json(folder / METRICS, metrics)
    return metrics


def seeded(seed: int) -> list[str]:
    """Options that set every seed; the recipe's own are 0."""
    names = (
        "pictures.seed",
        "vision.seed_everything",
        "vision.data.init_args.seed",
        "transformer.seed_everything",
        "transformer.data.init_args.seed",
        "report.seed",
    )
    return [word for name in names for word in (f"--{name}", str(seed))] if seed else []
