"""Measure contenders side by side: alternating order, medians with spread, peak memory, one CSV and one plot per op.

A contender is a function without arguments that does the whole of the work to be timed. All contenders of a case run in every
round, each round starting with another one, so that drifting clocks and busy neighbours meet all of them alike.
"""

import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

from emu_kernels.testing import peak_cpu_bytes

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Contender:
    """A way to do the work; `floor` marks the physical floor, which the others are held against."""

    name: str
    function: Callable[[], Any]
    floor: bool = False
    measure_memory: bool = True


@dataclass(frozen=True)
class Row:
    """One line of a results table; times in milliseconds, memory in MiB, percent_of_floor = 100 * floor / median."""

    op: str
    case: str
    contender: str
    median_ms: float
    low_ms: float
    high_ms: float
    peak_mib: float | None
    percent_of_floor: float | None
    rounds: int
    machine: str
    versions: str
    day: str


def machine_name(device: str) -> str:
    """The processor that the numbers belong to."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"


def versions(device: str) -> str:
    """The libraries that the numbers belong to."""
    found = [f"torch {torch.__version__}"]
    if device == "cuda":
        import triton

        found.append(f"triton {triton.__version__}")
    return ", ".join(found)


def seconds(function: Callable[[], Any], device: str) -> float:
    """Wall time of one call, device included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(function: Callable[[], Any], device: str) -> int:
    """Most memory of one call beyond what was held before."""
    if device == "cpu":
        return peak_cpu_bytes(function)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    op: str, case: str, contenders: Sequence[Contender], device: str, rounds: int, warm_up: int = 1
) -> list[Row]:
    """Rows of one case, in the order of the contenders."""
    for contender in contenders:
        for _ in range(warm_up):
            contender.function()
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        start = number % len(contenders)
        for contender in [*contenders[start:], *contenders[:start]]:
            times[contender.name].append(1e3 * seconds(contender.function, device))
    floors = [statistics.median(times[c.name]) for c in contenders if c.floor]
    rows = []
    for contender in contenders:
        ordered = sorted(times[contender.name])
        median = statistics.median(ordered)
        rows.append(
            Row(
                op,
                case,
                contender.name,
                round(median, 4),
                round(ordered[len(ordered) // 5], 4),
                round(ordered[-1 - len(ordered) // 5], 4),
                round(peak_bytes(contender.function, device) / 2**20, 1) if contender.measure_memory else None,
                round(100 * floors[0] / median, 1) if floors else None,
                rounds,
                machine_name(device),
                versions(device),
                date.today().isoformat(),
            )
        )
    return rows


def report(rows: Sequence[Row], name: str) -> Path:
    """Print the rows, write them to `results/<name>.csv` and draw `results/<name>.png`; returns the table's path."""
    for row in rows:
        memory = "" if row.peak_mib is None else f"{row.peak_mib:10.1f} MiB"
        floor = "" if row.percent_of_floor is None else f"{row.percent_of_floor:7.1f}% of floor"
        print(f"{row.case:40s} {row.contender:28s} {row.median_ms:12.3f} ms {memory} {floor}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw(rows, path.with_suffix(".png"))
    return path


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of time and of memory, one group per case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row.case for row in rows))
    names = list(dict.fromkeys(row.contender for row in rows))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.5 + 0.32 * len(rows)))
    for axis, field, unit in ((axes[0], "median_ms", "milliseconds"), (axes[1], "peak_mib", "peak MiB")):
        for number, name in enumerate(names):
            found = {row.case: getattr(row, field) or 0.0 for row in rows if row.contender == name}
            places = [index + 0.8 * number / len(names) for index in range(len(cases))]
            axis.barh(places, [found.get(case, 0.0) for case in cases], 0.8 / len(names), label=name)
        axis.set_yticks(
            [index + 0.4 for index in range(len(cases))], cases if field == "median_ms" else [""] * len(cases)
        )
        axis.invert_yaxis()
        axis.set_xlabel(unit)
    axes[1].legend(fontsize=8)
    figure.suptitle(f"{rows[0].op} on {rows[0].machine}, {rows[0].day}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
