"""Tokens a pass and CPU time of exact speculative decoding on a bundled model, as people use it: pictures and clips with guidance.

    python benchmarks/generation_windows.py --windows 1 4 16 auto --repeats 3
    python benchmarks/generation_windows.py --model pictures --windows 1 4 16 32 auto --batches 1 4 --guidance 3
    python benchmarks/generation_windows.py --model shapes --windows 1 8 16 auto --batches 1 4 --guidance 3 --repeats 5

How many guesses are right depends on the model, the grid and the guidance, and what a wider pass costs on the machine, so every row names
them. CPU seconds of one thread are medians over the repeats, after first calls in which "auto" tries its candidates; windows are measured
in turns. Rows go to results/generation_windows_<model>_cpu.csv. `benchmarks/generation.py --windows` measures a model of noise grids.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from emu import Emu
from emu.generation.window_choice import Window

RESULTS = Path(__file__).parent / "results"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = ("cat", "rocket", "pilot: dark skin tone", "pizza", "guitar", "firefighter: light skin tone", "bus", "dragon")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
PROMPTS = {
    "digits": {
        "pictures": [f"a handwritten {name}" for name in NAMES],
        "clips": [f"a handwritten {name} moving left" for name in NAMES],
    },
    "pictures": {"pictures": list(THINGS), "clips": [f"{thing} bouncing" for thing in THINGS]},
    "shapes": {
        "pictures": [f"a {colour} {shape}" for colour in COLOURS for shape in ("circle", "square", "cross")],
        "clips": [f"a {colour} ball rolling {way} at 4 fps" for way in ("up", "left") for colour in COLOURS],
    },
}


def draw(emu: Emu, job: str, prompts: Sequence[str], batch: int, window: Window, guidance: float) -> list[Tensor]:
    """Codes of a batch of pictures or clips."""
    call = emu.generate_images if job == "pictures" else emu.generate_videos
    asked = [prompts[number % len(prompts)] for number in range(batch)]
    found = call(asked, guidance_scale=guidance, window=window, batch_size=batch, seed=list(range(batch)))
    return [result.codes for result in found]


def measure(
    emu: Emu, model: str, job: str, batch: int, guidance: float, windows: Sequence[Window], repeats: int
) -> list[dict]:
    """One CSV row per window."""
    prompts = PROMPTS[model][job]
    engine = emu._engine(None)
    codes, per_pass = {}, {}
    times: dict[Window, list[float]] = {window: [] for window in windows}
    for _ in range(3):  # warms up, and lets "auto" try its candidates
        for window in windows:
            codes[window] = draw(emu, job, prompts, batch, window, guidance)
            assert engine.last_stats is not None
            per_pass[window] = engine.last_stats.tokens_per_pass
    for _ in range(repeats):
        for window in windows:
            cpu = time.process_time()
            draw(emu, job, prompts, batch, window, guidance)
            times[window].append(time.process_time() - cpu)
    base, first = statistics.median(times[windows[0]]), codes[windows[0]]
    return [
        {
            "model": model,
            "job": job,
            "grid": "x".join(map(str, first[0].shape)),
            "batch": batch,
            "guidance": guidance,
            "window": window,
            "tokens_per_pass": f"{per_pass[window]:.2f}",
            "cpu_s_median": f"{statistics.median(times[window]):.3f}",
            "cpu_time_of_window_1": f"{statistics.median(times[window]) / base:.2f}",
            "same_codes": all(map(torch.equal, codes[window], first)),
        }
        for window in windows
    ]


def main() -> None:
    """Measure, write the CSV and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PROMPTS), default="digits")
    parser.add_argument(
        "--windows", nargs="+", default=["1", "4", "16", "auto"], help="the first is what others are held against"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    windows: list[Window] = ["auto" if word == "auto" else int(word) for word in options.windows]
    emu = Emu.from_pretrained(options.model, device="cpu")
    about = {
        "repeats": options.repeats,
        "threads": 1,
        "machine": f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }
    rows = [
        row | about
        for job in PROMPTS[options.model]
        for batch in options.batches
        for guidance in options.guidance
        for row in measure(emu, options.model, job, batch, guidance, windows, options.repeats)
    ]
    output = options.output or RESULTS / f"generation_windows_{options.model}_cpu.csv"
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({name: row[name] for name in list(row)[1:10]})


if __name__ == "__main__":
    main()
