"""Pictures of the bundled model through Python and as the command draws them, with all threads and with those that the work fills.

    python benchmarks/generation_threads.py --rounds 3 --pictures 1 64

Four processes stay alive and are asked in turns, so that all see the same machine:

    python   OpenMP's own waiting: threads spin       command   OMP_WAIT_POLICY=PASSIVE, as the command `emu` sets it
    filled   the threads that the work fills (now)    all       every thread that the process has (before)

Each draws so many pictures, first with the machine as it is and then beside a process that multiplies matrices on two threads. Wall and
CPU seconds are medians of the rounds. On a machine that others use, CPU seconds and ratios within one run are what to compare; the load
average stands in every row. Rows go to results/generation_threads.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "python all": {},
    "python filled": {},
    "command all": {"OMP_WAIT_POLICY": "PASSIVE"},
    "command filled": {"OMP_WAIT_POLICY": "PASSIVE"},
}
OTHER_JOB = "import torch; torch.set_num_threads(2); a = torch.randn(1500, 1500)\nwhile True: a @ a"


def serve(threads: int, everything: bool) -> None:
    """Draw as many pictures as each line of stdin says; answer with wall and CPU seconds."""
    import torch

    import emu.generation.threads as threads_module
    from emu import Emu

    torch.set_num_threads(threads)
    if everything:
        threads_module.threads_of = lambda work, available: available
    emu = Emu.from_pretrained("digits", device="cpu")
    emu.generate_images("a handwritten seven")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        emu.generate_images(["a handwritten seven"] * int(line), seed=list(range(int(line))))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Drawer:
    """A process that draws in one way."""

    def __init__(self, way: str, threads: int) -> None:
        words = [sys.executable, __file__, "--serve", *(["--everything"] if way.endswith("all") else [])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
        self.process = subprocess.Popen(
            [*words, "--threads", str(threads)],
            env=environment | WAYS[way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self) -> list[float]:
        """Its next line."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def draw(self, count: int) -> list[float]:
        """Wall and CPU seconds of so many pictures."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()


@contextmanager
def beside(busy: bool) -> Iterator[None]:
    """With another job on two threads, or without."""
    job = subprocess.Popen([sys.executable, "-c", OTHER_JOB]) if busy else None
    try:
        time.sleep(5 if busy else 0)  # until it multiplies
        yield
    finally:
        if job is not None:
            job.kill()
            job.wait()


def measure(rounds: int, threads: int, counts: Sequence[int]) -> list[dict[str, object]]:
    """One row for each way, number of pictures and condition."""
    drawers = {way: Drawer(way, threads) for way in WAYS}
    rows: list[dict[str, object]] = []
    try:
        for drawer in drawers.values():
            drawer.answer()
        for busy in (False, True):
            with beside(busy):
                found = {(way, count): [] for count in counts for way in WAYS}
                load = os.getloadavg()[0]
                for _ in range(rounds):
                    for way, count in found:
                        found[way, count].append(drawers[way].draw(count))
            for (way, count), pairs in found.items():
                walls, cpus = zip(*pairs, strict=True)
                rows.append(
                    {
                        "way": way,
                        "pictures": count,
                        "other_job": "two threads" if busy else "none",
                        "wall_s_median": f"{statistics.median(walls):.3f}",
                        "wall_s_max": f"{max(walls):.3f}",
                        "cpu_s_median": f"{statistics.median(cpus):.3f}",
                        "rounds": rounds,
                        "load_average": f"{load:.1f}",
                    }
                )
    finally:
        for drawer in drawers.values():
            drawer.process.kill()
            drawer.process.wait()
    return rows


def main() -> None:
    """Measure, write the CSV and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=2, help="that the drawing processes may use")
    parser.add_argument("--output", type=Path, default=RESULTS / "generation_threads.csv")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--everything", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.threads, options.everything)
        return
    import torch

    about = {
        "model": "digits, 32x32 pictures, guidance 3",
        "threads": options.threads,
        "cores": os.cpu_count(),
        "machine": f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }
    rows = [row | about for row in measure(options.rounds, options.threads, options.pictures)]
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            {
                name: row[name]
                for name in ("way", "pictures", "other_job", "wall_s_median", "wall_s_max", "cpu_s_median")
            }
        )


if __name__ == "__main__":
    main()
