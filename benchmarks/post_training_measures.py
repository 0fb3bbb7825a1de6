"""Everything that docs/results.md says of one model of the worlds, with the single answers, so that models are compared answer by answer.

    python benchmarks/post_training_measures.py runs/grpo measured/grpo.json --samples 4000

`benchmarks/post_training.py measure` calls it for every model; equal options ask every model the same, with the same noise. What was
measured before a stop is kept beside the file and not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu import Emu
from emu.evaluation.measures import Measure
from emu.evaluation.models import ModelScore
from emu.evaluation.skills import SHAPES_SKILLS, VIDEO_SKILLS
from emu.evaluation.suites.guidance import PAIR_SAMPLES, SCALES, GuidanceSubject, pair_measures, points_of
from emu.evaluation.suites.training_examples import WorldExamples
from emu.evaluation.suites.vqa import VqaSuite, worlds_table
from emu.evaluation.suites.worlds import SuiteOptions, WorldModel, measure_skills, trained_worlds
from emu.generation import Engine
from emu.training.checkpoint_file import read_checkpoint
from emu.worlds import HELD_OUT
from emu.worlds.question_data import QUESTIONS
from emu_tokenizers.files import read_json, write_json

TRAINED_FOR = ("relation", "negation, two objects", "counting")
"""The skills that reinforcement is meant to raise."""


def main() -> None:
    """Measure a model, or its curve, and write the file."""
    options = parse()
    begun = time.perf_counter()

    def log(line: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {line}", flush=True)

    torch.backends.cudnn.allow_tf32 = False  # codes of pictures are those of a CPU
    emu = Emu.from_pretrained(options.run / "model", device=options.device)
    documents, engine = trained_worlds(options.run / "model", emu.tokenizer), Engine(emu.model, emu.tokenizer.layout)
    amounts = SuiteOptions(options.documents, options.samples, 1.0, options.seed)
    subject = WorldModel(emu.model, engine, documents, amounts)
    parts: dict[str, Callable[[], Any]] = {
        "skills": lambda: skills(subject, log),
        "bits": lambda: bits(subject, log),
        "guidance": lambda: guidance(emu, subject, log),
        "questions": lambda: questions(options.run / "model", options, log),
    }
    if options.curve_from is not None:
        parts = {"steps": lambda: curve(options.run, options.curve_from, subject, log)}
    options.file.parent.mkdir(parents=True, exist_ok=True)
    partial = options.file.with_suffix(".partial")
    found = read_json(partial) if partial.exists() else {}
    for name, measured in parts.items():
        if name not in found:
            found[name] = measured()
            write_json(partial, found)
    partial.rename(options.file)
    log("done")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, with the model")
    parser.add_argument("file", type=Path, help="to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=4000, help="of each skill (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=1000, help="scored of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of prompts, documents and noise (default: %(default)s)")
    parser.add_argument(
        "--curve-from",
        type=Path,
        metavar="RUN",
        help="measure the skills that reinforcement trains alone, of the run that this one began as and of every checkpoint",
    )
    return parser.parse_args()


def skills(subject: WorldModel, log: Any) -> dict[str, str]:
    """By skill: which answers were right."""
    return {
        name: answers(share) for name, share in measure_skills((*SHAPES_SKILLS, *VIDEO_SKILLS), subject, log).items()
    }


def answers(share: Measure) -> str:
    """Which answers were right, a digit each."""
    assert share.values is not None
    return "".join("1" if value else "0" for value in share.values)


def bits(subject: WorldModel, log: Any) -> dict[str, dict[str, Any]]:
    """By task: bits of every held-out document, those of the true law, and the floor."""
    found = {}
    for name, some in subject.documents.items():
        score = ModelScore(subject.model, some)
        for task in some.tasks:
            draws = some.world.draw(subject.options.seed, subject.options.documents, HELD_OUT)
            spent, exact = score(task, draws), some.world.exact_bits(task, draws)
            found[f"{name}/{task}"] = {
                "model": np.round(spent, 4).tolist(),
                "exact": np.round(exact, 4).tolist(),
                "floor": some.world.floor(task),
            }
            log(f"{name}/{task}: excess {float((spent - exact).mean()):.3f} bits")
    return found


def guidance(emu: Emu, subject: WorldModel, log: Any) -> dict[str, Any]:
    """Accuracy and variety at each guidance scale, of one object (computed) and of two (drawn)."""
    examples = WorldExamples(subject.documents)
    asked = GuidanceSubject(emu, examples, SCALES, subject.options.samples, subject.options.seed)
    one = [
        {"scale": point.guidance_scale, "right": point.right.value, "bits": point.bits.value, "truth": point.truth}
        for point in points_of(asked)
    ]
    each = min(PAIR_SAMPLES, subject.options.samples // 2)
    two = {name: share.to_dict() for name, share in pair_measures(asked, subject.documents["two"], each).items()}
    log(f"guidance 1: {one[0]['bits']:.3f} of {one[0]['truth']:.3f} bits left free")
    return {"one": one, "two": two}


def questions(folder: Path, options: argparse.Namespace, log: Any) -> dict[str, Any]:
    """Shares of right answers, of a model that was trained to answer."""
    if QUESTIONS not in worlds_table(str(folder)):
        return {}
    request = {"model": str(folder), "worlds": None, "questions_file": None, "questions": 1000, "seed": options.seed}
    suite = VqaSuite()
    return dict(suite.run(suite.prepare(argparse.Namespace(**request)), log).table)


def curve(run: Path, begun_as: Path, subject: WorldModel, log: Any) -> dict[str, dict[str, str]]:
    """By step, 0 being the run that this one began as: the answers of the weights that its checkpoints hold."""
    trained = [skill for skill in SHAPES_SKILLS if skill.name in TRAINED_FOR]
    files = {int(file.stem.partition("=")[2]): file for file in (run / "checkpoints").glob("step=*.safetensors")}
    weights = {0: Emu.from_pretrained(begun_as / "model", device="cpu").model.state_dict()}
    found = {}
    for step in [0, *sorted(files)]:
        if step:
            content = read_checkpoint(files[step])["state_dict"]
            weights[step] = {name.removeprefix("model."): value for name, value in content.items()}
        subject.model.load_state_dict(weights.pop(step))
        log(f"step {step}")
        found[str(step)] = {name: answers(share) for name, share in measure_skills(trained, subject, log).items()}
    return found


if __name__ == "__main__":
    main()
