"""Each kind of training after pretraining, from runs of the recipe `shapes`, beside plain training that costs the same: the figures of
docs/results.md.

    python benchmarks/post_training.py seconds runs/shapes --output post             processor seconds a step of each kind, here
    python benchmarks/post_training.py prepare runs/shapes0 runs/shapes1 --output post        candidates, drawn, ranked and paired
    python benchmarks/post_training.py train runs/shapes0 runs/shapes1 --output post --device cuda --at-a-time 12
    python benchmarks/post_training.py measure runs/shapes0 runs/shapes1 --output post --device cuda --at-a-time 12
    python benchmarks/post_training.py curve runs/shapes0 runs/shapes1 --output post --samples 1000         checkpoints of grpo and plain
    python benchmarks/post_training.py report --output post --pictures docs/results

Runs are folders that `emu fit --config shapes --trainer.default_root_dir RUN` wrote. Every job is a process with a log of its own, and
what is done already is left alone, so that a stage that was stopped goes on. `--steps 4` makes all runs so short, only to see them work.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from side_jobs import SideJob, run_jobs

CANDIDATES = 8
RULES = {"two": ("plain", "relation", "counted", "negated"), "one": ("sized", "placed", "counted", "negated")}
"""Kinds of captions that candidates are drawn after."""
MARKS = 4
"""Points of a curve: checkpoints that are measured too."""
CURVES = ("grpo", "loose", "plain")
"""Kinds whose checkpoints the stage `curve` measures: `plain` gets the processor time of the other."""


@dataclass(frozen=True)
class Kind:
    """A way to train a model of the worlds further.

    Attributes:
        recipe: of `emu fit`.
        steps: of the run.
        words: what else the command line says; {run} is the model's run, {ranked} the folder of ranked candidates.
    """

    recipe: str
    steps: int
    words: tuple[str, ...] = ()


KINDS = {
    "grpo": Kind("shapes-grpo", 260),
    "loose": Kind("shapes-grpo", 250, ("--model.objective.kl=0.02", "--model.optimizer.schedule=constant")),
    "plain": Kind(
        "shapes", 1118, ("--model.config=null", "--trainer.callbacks=null", "--model.optimizer.decay_steps=372")
    ),
    "dpo": Kind("shapes-dpo", 300, ("--data.pairs={ranked}/pairs.jsonl",)),
    "qft": Kind("shapes-qft", 300, ("--data.ranked={ranked}/ranked.jsonl",)),
    "vqa": Kind("shapes-vqa", 2600),
}
BASE = "base"
"""What the model that training starts from is called among the kinds."""


def main() -> None:
    """Run a stage."""
    options = parse()
    if options.stage == "report":
        from post_training_report import report

        report(options.output, options.pictures)
        return
    stages = {
        "seconds": seconds_jobs,
        "prepare": prepare_jobs,
        "train": train_jobs,
        "measure": measure_jobs,
        "curve": curve_jobs,
    }
    failed = run_jobs(stages[options.stage](options), options.at_a_time)
    if failed:
        sys.exit(f"{len(failed)} jobs failed; {', '.join(str(job.log) for job in failed)} say why")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["seconds", "prepare", "train", "measure", "curve", "report"])
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs of the recipe shapes, one for each seed")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--at-a-time", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--steps", type=int, help="of each run, in place of those of its kind")
    parser.add_argument("--captions", type=int, help="that candidates are drawn after; all of those kinds by default")
    parser.add_argument("--samples", type=int, default=4000, help="of each skill (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=1000, help="scored of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of what is measured (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder for the plots of the report (the output by default)")
    options = parser.parse_args()
    if options.stage != "report" and not options.runs:
        parser.error("name the folders of the runs that training starts from")
    return options


def folder_of(run: Path, options: argparse.Namespace) -> Path:
    """Where everything that begins with a run goes."""
    folder: Path = options.output / run.resolve().name
    return folder


def seconds_jobs(options: argparse.Namespace) -> list[SideJob]:
    """A few steps of each kind, from the first run; on a CPU that others use too, what is counted is processor time."""
    script, folder = str(Path(__file__).parent / "post_training_seconds.py"), options.output / "seconds"
    return [
        SideJob([[script, str(file), *words_of(name, options.runs[0], options)]], file, file.with_suffix(".log"))
        for name in options.kinds
        for file in [folder / f"{name}.json"]
    ]


def prepare_jobs(options: argparse.Namespace) -> list[SideJob]:
    """Draw candidates, and rank them."""
    folders = {run: folder_of(run, options) for run in options.runs}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prompts.txt").write_text("\n".join(prompts(options.captions)) + "\n")
    drawn = ["--guidance-scale=1", "--temperature=1", "--top-k=0", f"--candidates={CANDIDATES}", "--format=webdataset"]
    drawn += [f"--device={options.device}", f"--batch-size={64 if options.device == 'cpu' else 1024}"]
    ranked = ["--reward=emu.worlds.world_prompts.WorldReward", '--reward-options={"worlds": ["one", "two"]}']
    return [
        SideJob(
            [
                [
                    "-m",
                    "emu",
                    "generate-images",
                    str(folder / "prompts.txt"),
                    *model,
                    f"--output={folder / 'drawn'}",
                    *drawn,
                ],
                ["-m", "emu", "rank", str(folder / "drawn"), *model, f"--output={folder / 'ranked'}", *ranked],
            ],
            folder / "ranked" / "pairs.jsonl",
            folder / "ranked.log",
        )
        for run, folder in folders.items()
        for model in [[f"--model={run / 'model'}"]]
    ]


def prompts(most: int | None) -> list[str]:
    """Captions that training knows, each once, in an order without order."""
    import numpy as np

    from emu.worlds import TRAIN, standard_worlds

    found = []
    for name, rules in RULES.items():
        world = standard_worlds()[name]
        numbers = np.unique(world.draw(5, 100_000, TRAIN, rules=rules).values("caption"))
        found += [world.captions.text(number) for number in numbers.tolist()]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[number] for number in order[:most]]


def train_jobs(options: argparse.Namespace) -> list[SideJob]:
    """Every kind from every run."""
    return [
        SideJob(
            [["-m", "emu", *words_of(name, run, options)]], folder / "model" / "emu.json", folder.with_suffix(".log")
        )
        for name in options.kinds
        for run in options.runs
        for folder in [folder_of(run, options) / name]
    ]


def words_of(name: str, run: Path, options: argparse.Namespace) -> list[str]:
    """The command that trains a kind from a run."""
    kind, folder = KINDS[name], folder_of(run, options)
    steps = options.steps or kind.steps
    seed = 1000 + zlib.crc32(run.resolve().name.encode()) % 1000  # of documents and noise that pretraining did not have
    words = ["fit", f"--config={kind.recipe}", f"--model.pretrained={run / 'model'}", f"--trainer.max_steps={steps}"]
    words += [f"--trainer.default_root_dir={folder / name}", f"--trainer.accelerator={options.device}"]
    words += [f"--seed_everything={seed}", f"--data.seed={seed}", "--data.num_workers=0"]
    words += [f"--checkpoint.every_n_steps={max(1, steps // MARKS)}", f"--checkpoint.keep={MARKS + 1}"]
    if (folder / name / "checkpoints").is_dir():
        words += ["--ckpt_path=last"]
    return words + [word.format(ranked=folder / "ranked") for word in kind.words]


def measure_jobs(options: argparse.Namespace) -> list[SideJob]:
    """Every model that is there."""
    script = str(Path(__file__).parent / "post_training_measures.py")
    amounts = [f"--{name}={getattr(options, name)}" for name in ("device", "samples", "documents", "seed")]
    found = []
    for name in (*options.kinds, BASE):
        for run in options.runs:
            trained = run if name == BASE else folder_of(run, options) / name
            file = options.output / "measured" / f"{run.resolve().name}-{name}.json"
            if (trained / "model" / "emu.json").exists():
                found.append(SideJob([[script, str(trained), str(file), *amounts]], file, file.with_suffix(".log")))
    return found


def curve_jobs(options: argparse.Namespace) -> list[SideJob]:
    """The checkpoints of the kinds that have a curve."""
    script = str(Path(__file__).parent / "post_training_measures.py")
    amounts = [f"--{name}={getattr(options, name)}" for name in ("device", "samples", "seed")]
    return [
        SideJob([[script, str(trained), str(file), f"--curve-from={run}", *amounts]], file, file.with_suffix(".log"))
        for name in CURVES
        for run in options.runs
        for trained in [folder_of(run, options) / name]
        if (trained / "model" / "emu.json").exists()
        for file in [options.output / "curves" / f"{run.resolve().name}-{name}.json"]
    ]


if __name__ == "__main__":
    main()
