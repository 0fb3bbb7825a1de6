"""`emu demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emu.stopping import Stopped


def main(arguments: Sequence[str]) -> int:
    """Run the demo; the exit code is 1 if a goal was missed that a run of this length should reach."""
    parser = argparse.ArgumentParser(
        prog="emu demo", description=__doc__.strip("`.\n") + ": train from scratch, evaluate, report"
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("digits", "pictures"),
        default="digits",
        help="handwritten digits (minutes; default), or captioned colour pictures (25 minutes on two cores)",
    )
    parser.add_argument("--long", action="store_true", help="three times the steps (digits)")
    parser.add_argument(
        "--output", type=Path, help="output folder (default: demo for digits, demo-pictures for pictures)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default: 0)")
    options = parser.parse_args(arguments)
    if options.what == "pictures":
        if options.long:
            parser.error("--long goes with the digits; emu fit --config demo-pictures takes steps of your own")
        return _pictures(options.output or Path("demo-pictures"), options.seed)
    return _digits(options.output or Path("demo"), options.seed, options.long)


def _digits(folder: Path, seed: int, long: bool) -> int:
    from emu.demo.report import goal_mark
    from emu.demo.run import DemoPlan, run_demo

    plan = replace(DemoPlan(), seed=seed)
    plan = plan.three_times_as_long() if long else plan
    try:
        metrics = run_demo(folder, plan, log=lambda line: print(line, file=sys.stderr), progress=True)
    except Stopped as stop:  # whose advice is that of emu fit, which this command does not take
        raise Stopped(stop.number, "emu demo trains from the beginning when it is run again") from stop
    for name, goal in plan.goals.items():
        print(f"{name:38} {metrics[name]:8.4g}   goal {goal:<6g} {goal_mark(metrics[name], goal, name in plan.beyond)}")
    _say_cost(folder, metrics)
    return 1 if plan.missed(metrics) else 0


def _pictures(folder: Path, seed: int) -> int:
    from emu.demo.pictures.emoji_report import GOALS, missed
    from emu.demo.pictures.pictures_run import run_pictures

    metrics = run_pictures(folder, seed)
    short = missed(metrics)
    for name, goal in GOALS.items():
        copied = metrics.get(f"{name}_copied")
        beside = "" if copied is None else f"   copying gets {copied:g}"
        reached = "short of it" if name in short else "reached"
        print(f"{name:28} {metrics[name]:8.4g}   goal {goal.least:<6g} {reached:12}{beside}")
    _say_cost(folder, metrics)
    return 1 if short else 0


def _say_cost(folder: Path, metrics: Mapping[str, Any]) -> None:
    print(f"{metrics['cpu_seconds']:.0f} CPU-seconds, {metrics['wall_seconds']:.0f} s, {metrics['peak_gib']:.2f} GiB")
    print(f"look at {folder / 'report.html'}")
