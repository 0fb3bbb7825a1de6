"""What each choice of `recipes/shapes.yaml` is worth: the same processor time for every variant, several seeds, excess bits at the end.

    python benchmarks/worlds_ablation.py --seconds 120 --seeds 0 1 2 --output benchmarks/results/worlds_ablation.csv

A variant's number of steps is chosen so that it costs what the recipe's steps cost; each run is a process of one thread. Runs that the
file already holds are not repeated, so that an interrupted ablation goes on where it stopped. `--table` prints mean and range of each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import yaml

RECIPE = Path(__file__).parent.parent / "recipes" / "shapes.yaml"
DOCUMENTS: dict[str, int] = yaml.safe_load(RECIPE.read_text())["data"]["init_args"]["documents_per_step"]
HALF = {name: count // 2 for name, count in DOCUMENTS.items()}
DOUBLE = {name: 2 * count for name, count in DOCUMENTS.items()}

VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "AdamW alone": ["--model.optimizer.name", "adamw"],
    "no QK-norm": ["--model.config.qk_norm", "false"],
    "no z-loss": ["--model.config.z_loss", "0"],
    "dropout 0.1": ["--model.config.residual_dropout", "0.1", "--model.config.embedding_dropout", "0.1"],
    "vision weight 0.5": ["--model.weighting.kinds", "{vision: 0.5}"],
    "mean of each modality": ["--model.weighting.mean", "kinds"],
    "no prompt dropped": ["--data.prompt_dropout", "0"],
    "a fifth of prompts dropped": ["--data.prompt_dropout", "0.2"],
    "half the documents a step": ["--data.documents_per_step", json.dumps(HALF)],
    "twice the documents a step": ["--data.documents_per_step", json.dumps(DOUBLE)],
    "codes in prompts weigh 0": ["--data.prompt_weight", "0"],
}
HEADLINE = (
    "one/text-to-image",
    "one/image-to-text",
    "two/text-to-image",
    "two/image-to-text",
    "moving/text-to-video",
    "one/image-to-boxes",
)
MEASURED_STEPS, SKIPPED_STEPS = 50, 10
SCORED_DOCUMENTS = 200


def main() -> None:
    """Run what is missing, then print the table."""
    options = parse()
    if options.child:
        child(json.loads(options.child))
        return
    rows = read(options.output)
    if not options.table:
        done = {(row["variant"], int(row["seed"])) for row in rows}
        steps = {row["variant"]: int(row["steps"]) for row in rows}
        for seed in options.seeds:
            for variant in options.variants:
                if (variant, seed) not in done:
                    if variant not in steps:
                        steps[variant] = steps_in(VARIANTS[variant], options.seconds)
                    rows.append(measure(variant, seed, steps[variant]))
                    write(options.output, rows)
    print(table(rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="processor seconds of a run's steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/worlds_ablation.csv"))
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def steps_in(words: list[str], seconds: float) -> int:
    """How many steps of a variant so many processor seconds pay for."""
    return round(
        1000 * seconds / run({"words": words, "seed": 0, "steps": MEASURED_STEPS, "score": False})["milliseconds"]
    )


def measure(variant: str, seed: int, steps: int) -> dict[str, str]:
    """Train and score one variant with one seed."""
    found = run({"words": VARIANTS[variant], "seed": seed, "steps": steps, "score": True})
    row = {"variant": variant, "seed": seed, "steps": steps, "milliseconds_a_step": round(found["milliseconds"], 1)}
    row |= {f"excess/{name}": round(bits, 4) for name, bits in found["excess"].items()}
    print(variant, seed, steps, {name: round(found["excess"][name], 2) for name in HEADLINE}, flush=True)
    return {name: str(value) for name, value in row.items()}


def run(job: dict) -> dict:
    """One training run in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"a run failed: {job}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: dict) -> None:
    """Train, score, print what was found as a line of JSON."""
    from timed_training import timed_training

    from emu.evaluation.excess_curves import ExcessCurves

    steps = job["steps"]
    words = ["--config", "shapes", "--trainer.callbacks", "null", "--trainer.max_steps", str(steps)]
    words += ["--model.optimizer.decay_steps", str(max(1, steps // 3)), "--seed_everything", str(job["seed"])]
    words += ["--data.seed", str(job["seed"])]
    module = timed_training([*words, *job["words"]])
    spans = [1000 * seconds for seconds in module.seconds(SKIPPED_STEPS)]
    found = {"milliseconds": median(spans)}  # of a shared machine, whose other work comes in bursts
    if job["score"]:
        assert module.model is not None
        scores = ExcessCurves(documents=SCORED_DOCUMENTS, samples=0).scores(
            module.model.eval(), module.trainer.datamodule
        )
        found["excess"] = {name: score.excess.value for name, score in scores.items()}  # type: ignore[assignment]
    print(json.dumps(found))


def table(rows: list[dict[str, str]]) -> str:
    """Mean and range over seeds, in Markdown."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["variant"]].append(row)
    lines = ["| variant | steps | " + " | ".join(HEADLINE) + " | sum of twelve |", "|---" * (len(HEADLINE) + 3) + "|"]
    for variant, group in groups.items():
        columns = [[float(row[f"excess/{name}"]) for row in group] for name in HEADLINE]
        columns.append([sum(float(row[name]) for name in row if name.startswith("excess/")) for row in group])
        cells = [f"{sum(c) / len(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns]
        lines.append(f"| {variant} | {group[0]['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(file: Path) -> list[dict[str, str]]:
    """Runs of earlier calls."""
    return list(csv.DictReader(file.open())) if file.exists() else []


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """All runs so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
