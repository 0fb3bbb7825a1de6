"""Commands that run at the same time, a process and a log file each: what a script of many small runs on one machine needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
"""One thread a process: there are as many processes as the machine has cores."""


@dataclass(frozen=True)
class SideJob:
    """A command that is done when a file exists.

    Attributes:
        words: the command line; the interpreter comes before what ends in ".py", and `emu`'s is `-m emu`.
        done: file or folder that it writes last; where it exists already the job is not run again.
        log: where its output goes.
    """

    words: Sequence[str]
    done: Path
    log: Path


def run_jobs(jobs: Sequence[SideJob], at_a_time: int) -> list[SideJob]:
    """Run what is not done yet.

    Returns:
        The jobs that failed; what they said is told by their logs.
    """
    with ThreadPoolExecutor(at_a_time) as pool:
        results = list(pool.map(run_job, jobs))
    return [job for job, good in zip(jobs, results, strict=True) if not good]


def run_job(job: SideJob) -> bool:
    """Run a job, unless it is done; whether it is now."""
    if job.done.exists():
        return True
    job.log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with job.log.open("w") as log:
        done = subprocess.run(
            [sys.executable, *job.words],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, **ENVIRONMENT},
        )
    good = done.returncode == 0 and job.done.exists()
    print(f"{job.log.stem}: {'done' if good else 'FAILED'} in {time.perf_counter() - begun:.0f} s", flush=True)
    return good
