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
    """Commands that run one after another and are done when a file exists.

    Attributes:
        commands: what the interpreter is given: a script and its options, or `-m emu` and so on.
        done: file that the last of them writes last; where it exists already the job is not run again.
        log: where their output goes.
    """

    commands: Sequence[Sequence[str]]
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
    begun, environment = time.perf_counter(), {**os.environ, **ENVIRONMENT}
    with job.log.open("w") as log:
        good = all(
            subprocess.run(
                [sys.executable, *words], stdout=log, stderr=subprocess.STDOUT, check=False, env=environment
            ).returncode
            == 0
            for words in job.commands
        )
    good = good and job.done.exists()
    print(f"{job.log.stem}: {'done' if good else 'FAILED'} in {time.perf_counter() - begun:.0f} s", flush=True)
    return good
