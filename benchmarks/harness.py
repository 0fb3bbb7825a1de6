"""Measure contenders side by side: alternating order, medians with spread, peak memory, one CSV and one plot per op.

A contender is a function without arguments that does the whole of the work to be timed. All contenders of a case run in every
round, each round starting with another one, so that drifting clocks and busy neighbours meet all of them alike. On a CPU that
others use too, set OMP_WAIT_POLICY=PASSIVE, as the command line of Emu does: threads that spin while they wait multiply times.
"""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from emu_kernels.testing import peak_cpu_bytes

RESULTS = Path(os.environ.get("EMU_RESULTS") or Path(__file__).parent / "results")


@dataclass(frozen=True)
class Contender:
    """A way to do the work; `floor` marks a physical floor; the others are held against the lowest."""

    name: str
    function: Callable[[], Any]
    floor: bool = False
    measure_memory: bool = True


@dataclass(frozen=True)
class Row:
    """One line of a results table; times in milliseconds, memory in MiB, percent_of_floor = 100 * floor / time.

    `cpu_ms` is the processor time of all threads, which a busy neighbour does not stretch; on a CPU the floor is held against it.
    """

    op: str
    case: str
    contender: str
    median_ms: float
    low_ms: float
    high_ms: float
    cpu_ms: float
    peak_mib: float | None
    percent_of_floor: float | None
    rounds: int
    device: str
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
    if device == "cpu" and "OMP_WAIT_POLICY" in os.environ:
        found.append(f"OMP_WAIT_POLICY {os.environ['OMP_WAIT_POLICY']}")
    if device == "cuda":
        import triton

        found.append(f"triton {triton.__version__}")
    return ", ".join(found)


FLUSH_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU holds."""
HEAD_START = 2_000_000
"""Cycles, about a millisecond, for which the GPU waits while the host starts the kernels of a call."""


@cache
def flush_buffer() -> torch.Tensor:
    """What is written between calls, so that none finds its inputs in the cache."""
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def seconds(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Time of one call, and processor time: wall time on a CPU; on a GPU from event to event, with a cold cache and launches hidden."""
    if device == "cuda":
        return device_seconds(function)
    start, start_cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - start_cpu


def device_seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Time of one call on the GPU alone; one that waits for the GPU, or whose host needs more than HEAD_START, shows its host's time."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush_buffer().zero_()
    torch.cuda.synchronize()
    start_cpu = time.process_time()
    torch.cuda._sleep(HEAD_START)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, time.process_time() - start_cpu


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
    """Rows of one case, in the order of the contenders; the memory is that of the last warm-up call."""
    peaks: dict[str, int] = {}
    for contender in contenders:
        try:
            for _ in range(warm_up - 1):
                contender.function()
            peaks[contender.name] = peak_bytes(contender.function, device)
        except Exception as error:
            if contender.name.startswith("emu") or contender.floor:
                raise
            # A compiler or a library that fails on a machine is not measured there, and the others are.
            print(f"{case}: left out {contender.name}, {type(error).__name__}: {str(error).splitlines()[0]}")
    contenders = [contender for contender in contenders if contender.name in peaks]
    wall: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    processor: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        start = number % len(contenders)
        for contender in [*contenders[start:], *contenders[:start]]:
            elapsed, busy = seconds(contender.function, device)
            wall[contender.name].append(1e3 * elapsed)
            processor[contender.name].append(1e3 * busy)
    held = wall if device == "cuda" else processor
    medians = {contender.name: statistics.median(held[contender.name]) for contender in contenders}
    floors = [medians[contender.name] for contender in contenders if contender.floor]
    rows = [
        Row(
            op=op,
            case=case,
            contender=contender.name,
            median_ms=round(statistics.median(wall[contender.name]), 4),
            low_ms=round(min(wall[contender.name]), 4),
            high_ms=round(max(wall[contender.name]), 4),
            cpu_ms=round(statistics.median(processor[contender.name]), 4),
            peak_mib=round(peaks[contender.name] / 2**20, 1) if contender.measure_memory else None,
            percent_of_floor=round(100 * min(floors) / medians[contender.name], 1) if floors else None,
            rounds=rounds,
            device=device,
            machine=machine_name(device),
            versions=versions(device),
            day=date.today().isoformat(),
        )
        for contender in contenders
    ]
    for row in rows:
        show(row)
    return rows


def show(row: Row) -> None:
    """Print a row, as soon as its case is done: the time on a GPU may end before the last one."""
    memory = "" if row.peak_mib is None else f"{row.peak_mib:10.1f} MiB"
    floor = "" if row.percent_of_floor is None else f"{row.percent_of_floor:7.1f}% of floor"
    print(
        f"{row.case:40s} {row.contender:28s} {row.median_ms:12.3f} ms {row.cpu_ms:12.3f} ms cpu {memory} {floor}",
        flush=True,
    )


def report(rows: Sequence[Row], name: str) -> Path:
    """Write rows to `results/<name>.csv` and draw `results/<name>.png`; returns the table's path."""
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
    time_field = "cpu_ms" if rows[0].device == "cpu" else "median_ms"
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.5 + 0.32 * len(rows)))
    for axis, field, unit in ((axes[0], time_field, "milliseconds"), (axes[1], "peak_mib", "peak MiB")):
        for number, name in enumerate(names):
            found = {row.case: getattr(row, field) or 0.0 for row in rows if row.contender == name}
            places = [index + 0.8 * number / len(names) for index in range(len(cases))]
            axis.barh(places, [found.get(case, 0.0) for case in cases], 0.8 / len(names), label=name)
        axis.set_yticks(
            [index + 0.4 for index in range(len(cases))], cases if field == time_field else [""] * len(cases)
        )
        axis.invert_yaxis()
        axis.set_xlabel(unit)
    axes[1].legend(fontsize=8)
    figure.suptitle(f"{rows[0].op} on {rows[0].machine}, {rows[0].day}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
