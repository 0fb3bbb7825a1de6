"""`emu demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Run the demo; the exit code is 1 where a goal was missed that a run of this length reaches."""
    parser = argparse.ArgumentParser(
        prog="emu demo", description=__doc__.strip("`.\n") + ": train on handwritten digits, measure, show"
    )
    parser.add_argument("--long", action="store_true", help="three times the steps")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    options = parser.parse_args(arguments)
    from emu.demo.report import goal_mark
    from emu.demo.run import DemoPlan, run_demo

    plan = replace(DemoPlan(), seed=options.seed)
    plan = plan.three_times_as_long() if options.long else plan
    metrics = run_demo(options.output, plan, log=lambda line: print(line, file=sys.stderr), progress=True)
    for name, goal in plan.goals.items():
        print(f"{name:38} {metrics[name]:8.4g}   goal {goal:<6g} {goal_mark(metrics[name], goal, name in plan.beyond)}")
    print(f"{metrics['cpu_seconds']:.0f} CPU-seconds, {metrics['wall_seconds']:.0f} s, {metrics['peak_gib']:.2f} GiB")
    print(f"look at {options.output / 'report.html'}")
    return 1 if plan.missed(metrics) else 0
