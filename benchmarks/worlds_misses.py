"""Where the recipe `shapes` falls short, measured quickly: pairs that were never seen together, odds of what prompts leave free, bits.

    python benchmarks/worlds_misses.py runs/a/model runs/b/model --output misses
    python benchmarks/worlds_misses.py runs/*/model --device cuda --at-a-time 8 --seed 7 --output misses

Each model is measured in a process of its own (`misses/<name>.json`, with a log beside it); what is there already is not measured again.
The table that is printed has Holm's correction over the tests of all its models.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from side_jobs import SideJob, run_jobs

SEEN, UNSEEN = "two objects: binding", "held-out pairs: binding"
LEVEL = 1e-3
"""A test fails at this adjusted p-value."""


def main() -> None:
    """Measure what is missing, then print the table."""
    options = parse()
    if options.child:
        write(options.child, measured(options.models[0], options))
        return
    files = {model: options.output / f"{name_of(model)}.json" for model in options.models}
    jobs = [SideJob([words(model, file, options)], file, file.with_suffix(".log")) for model, file in files.items()]
    failed = run_jobs(jobs, options.at_a_time)
    print(table({file.stem: json.loads(file.read_text()) for file in files.values() if file.exists()}))
    if failed:
        sys.exit(f"not measured: {', '.join(str(job.log) for job in failed)} say why")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of models of the recipe shapes")
    parser.add_argument("--output", type=Path, default=Path("misses"), help="folder of results (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--at-a-time", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=4000, help="pictures of each kind of pairs (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="of each test of odds (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=500, help="scored a task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: %(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def name_of(model: Path) -> str:
    """What a model is called: the folder of its run, where it lies in one."""
    whole = model.resolve()
    return whole.parent.name if whole.name == "model" else whole.name


def words(model: Path, file: Path, options: argparse.Namespace) -> list[str]:
    """The command that measures one model."""
    given = {name: getattr(options, name) for name in ("device", "pairs", "samples", "documents", "seed")}
    return [__file__, str(model), "--child", str(file), *(f"--{name}={value}" for name, value in given.items())]


def write(file: Path, found: dict[str, Any]) -> None:
    """The result, whole or not at all."""
    from emu_tokenizers.files import write_json

    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)


def measured(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Shares of right pairs, tests of odds at guidance 1, excess bits of every task."""
    import torch

    from emu import Emu
    from emu.evaluation.skills import SHAPES_SKILLS
    from emu.evaluation.suites.calibration import measure_odds, score_tasks
    from emu.evaluation.suites.worlds import SuiteOptions, WorldModel, measure_skills, trained_worlds
    from emu.generation import Engine

    begun = time.perf_counter()

    def log(line: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {line}", flush=True)

    torch.backends.cudnn.allow_tf32 = False  # codes of pictures are those of a CPU
    emu = Emu.from_pretrained(model, device=options.device)
    documents, engine = trained_worlds(model, emu.tokenizer), Engine(emu.model, emu.tokenizer.layout)
    amounts = [SuiteOptions(options.documents, count, 1.0, options.seed) for count in (options.pairs, options.samples)]
    pairs, rest = (WorldModel(emu.model, engine, documents, some) for some in amounts)
    skills = measure_skills([skill for skill in SHAPES_SKILLS if skill.name in (SEEN, UNSEEN)], pairs, log)
    tests, scores = measure_odds(rest, log, scales=(1.0,)), score_tasks(rest, log)
    return {
        "skills": {name: share.to_dict() for name, share in skills.items()},
        "tests": tests,
        "scores": [score.to_dict() for score in scores],
        "seconds": time.perf_counter() - begun,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each model, in Markdown: pairs, the smallest p with its test, how many tests fail, excess of the main tasks."""
    from emu.evaluation.statistics import holm

    pooled = {
        (model, f"{test['world']} {test['task']} {test['attribute']}"): test["test"]["p_value"]
        for model, one in found.items()
        for test in one["tests"]
    }
    adjusted = dict(zip(pooled, holm(list(pooled.values())), strict=True))
    lines = [
        f"| model | seen | held out | behind | smallest p | tests that fail (Holm over {len(pooled)}) | sum of excess | seconds |",
        "|---" * 8 + "|",
    ]
    for model, one in found.items():
        own = {name: p for (whose, name), p in pooled.items() if whose == model}
        least = min(own, key=own.__getitem__) if own else "none"
        shares = [one["skills"][name]["value"] for name in (SEEN, UNSEEN)]
        excess = sum(score["excess"]["value"] for score in one["scores"] if score["split"] == "held_out")
        failing = [name for name in own if adjusted[model, name] <= LEVEL]
        lines.append(
            f"| {model} | {shares[0]:.3f} | {shares[1]:.3f} | {shares[0] - shares[1]:.3f} | {own.get(least, 1):.1g} ({least}) | "
            f"{', '.join(failing) or 'none'} | {excess:.2f} | {one['seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
