"""Tokens a pass and CPU time of exact speculative decoding on the bundled model, as people use it: pictures and clips with guidance.

    python benchmarks/generation_windows.py --windows 1 4 16 auto --repeats 3

How many guesses are right depends on the model, the grid and the guidance, and what a wider pass costs on the machine, so every row names
them. CPU seconds of one thread are medians over the repeats, after first calls in which "auto" tries its candidates; windows are measured
in turns. Rows go to results/generation_windows_digits_cpu.csv. `benchmarks/generation.py --windows` measures a model of noise grids.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from emu import Emu
from emu.generation.window_choice import Window

RESULTS = Path(__file__).parent / "results"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def draw_pictures(emu: Emu, batch: int, window: Window, guidance: float) -> list[list[int]]:
    """Codes of a batch of pictures."""
    prompts = [f"a handwritten {NAMES[number % 10]}" for number in range(batch)]
    found = emu.generate_images(
        prompts, guidance_scale=guidance, window=window, batch_size=batch, seed=list(range(batch))
    )
    return [result.codes.flatten().tolist() for result in found]


def draw_clips(emu: Emu, batch: int, window: Window, guidance: float) -> list[list[int]]:
    """Codes of a batch of clips."""
    prompts = [f"a handwritten {NAMES[number % 10]} moving left" for number in range(batch)]
    found = emu.generate_videos(
        prompts, guidance_scale=guidance, window=window, batch_size=batch, seed=list(range(batch))
    )
    return [result.codes.flatten().tolist() for result in found]


JOBS: dict[str, tuple[str, Callable[..., list[list[int]]]]] = {
    "pictures": ("4x4", draw_pictures),
    "clips": ("2x4x4", draw_clips),
}


def measure(emu: Emu, job: str, batch: int, guidance: float, windows: Sequence[Window], repeats: int) -> list[dict]:
    """One CSV row per window."""
    grid, draw = JOBS[job]
    engine = emu._engine(None)
    codes, per_pass = {}, {}
    times: dict[Window, list[float]] = {window: [] for window in windows}
    for _ in range(3):  # warms up, and lets "auto" try its candidates
        for window in windows:
            codes[window] = draw(emu, batch, window, guidance)
            assert engine.last_stats is not None
            per_pass[window] = engine.last_stats.tokens_per_pass
    for _ in range(repeats):
        for window in windows:
            cpu = time.process_time()
            draw(emu, batch, window, guidance)
            times[window].append(time.process_time() - cpu)
    base = statistics.median(times[windows[0]])
    return [
        {
            "model": "digits",
            "job": job,
            "grid": grid,
            "batch": batch,
            "guidance": guidance,
            "window": window,
            "tokens_per_pass": f"{per_pass[window]:.2f}",
            "cpu_s_median": f"{statistics.median(times[window]):.3f}",
            "cpu_time_of_window_1": f"{statistics.median(times[window]) / base:.2f}",
            "same_codes": codes[window] == codes[windows[0]],
        }
        for window in windows
    ]


def main() -> None:
    """Measure, write the CSV and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--windows", nargs="+", default=["1", "4", "16", "auto"], help="the first is what others are held against"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "generation_windows_digits_cpu.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    windows: list[Window] = ["auto" if word == "auto" else int(word) for word in options.windows]
    emu = Emu.from_pretrained("digits", device="cpu")
    about = {
        "repeats": options.repeats,
        "threads": 1,
        "machine": f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }
    rows = [
        row | about
        for job in JOBS
        for batch in options.batches
        for guidance in options.guidance
        for row in measure(emu, job, batch, guidance, windows, options.repeats)
    ]
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({name: row[name] for name in list(row)[1:10]})


if __name__ == "__main__":
    main()
