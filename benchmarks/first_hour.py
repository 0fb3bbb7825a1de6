"""Everything that a GPU is asked for first, in one command: correctness, then block sizes, then the benchmarks, most telling ones first.

    python benchmarks/first_hour.py                    # on a machine with a GPU; stop it at any time, the same command goes on
    python benchmarks/first_hour.py --parts attention loss
    python benchmarks/first_hour.py --dry-run          # every part in small on a CPU, kernels in Triton's interpreter

Each part is a process of its own of at most eight minutes, whose output is in FOLDER/<part>.log; `index.html` there says which have passed,
which have failed and how, and links the tables. A part that has passed is not run again; `--again` names those that shall be.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
LIMIT = 480
"""Seconds of a part, after which it is stopped and counts as failed."""
SANITIZED = "equals_the_full_table or close_to_float64_and_a_row or waits_for_the_device"
"""Tests of every kernel on small inputs, which a tool that checks each access to memory runs a hundred times slower."""


@dataclass(frozen=True)
class Part:
    """What is run on a GPU, and in small on a CPU; `{python}` stands for this interpreter, `{tests}` for the folder of tests."""

    name: str
    why: str
    command: str
    dry: str


def script(name: str, why: str, file: str, small: str, options: str = "") -> Part:
    """A benchmark of this folder, small with these options."""
    return Part(
        name, why, f"{{python}} {file} --device cuda {options}".strip(), f"{{python}} {file} --device cpu {small}"
    )


FILES = ("kernels_gpu", "kernels_gpu_fused", "kernels_gpu_shared", "generation_gpu")
TESTS = f"{{python}} -m pytest -q -m gpu {' '.join(f'{{tests}}/test_{name}.py' for name in FILES)}"
PARTS = (
    Part("tests", "every op and recorded pass against float64 and the CPU", TESTS, f"{TESTS} --collect-only"),
    Part(
        "sanitizer",
        "no kernel reads or writes beside its tensors",
        f"compute-sanitizer --error-exitcode 3 {{python}} -m pytest -q -m gpu {{tests}}/test_kernels_gpu.py -k '{SANITIZED}'",
        f"{{python}} -m pytest -q -m gpu {{tests}}/test_kernels_gpu.py -k '{SANITIZED}' --collect-only",
    ),
    script(
        "tuning", "block sizes and chunks against the library's own", "kernels_tune.py",
        "--length 64 --head-width 16 --vocab 512 --width 64 --rounds 1",
    ),
    script(
        "loss", "the loss beside its three products", "kernels_linear_cross_entropy.py",
        "--tokens 64 --width 32 --vocab 500 --rounds 1",
    ),
    script("attention", "attention beside flash, cuDNN, Flex and varlen", "kernels_attention.py", "--rounds 1"),
    script("sampler", "the sampler with its slice of the head", "kernels_guided_sample.py", "--rounds 1"),
    script("search", "the search of codes", "kernels_nearest_code.py", "--rounds 1"),
    script("cache", "attention of new tokens to a cache", "kernels_decode_attention.py", "--rounds 1"),
    script("fused", "norm, rotation and gate", "kernels_fused.py", "--tokens 32 --rounds 1"),
    script(
        "generation", "passes that are recorded, and whole pictures", "generation_gpu.py",
        "--layers 1 --width 512 --contexts 8 --rounds 1 --grid 2",
    ),
    script("training", "a training step beside transformers'", "training_gpu.py", "--sizes tiny --rounds 1"),
)  # fmt: skip


@dataclass
class Outcome:
    """How a part ended."""

    name: str
    passed: bool
    seconds: float
    words: str


def run(part: Part, folder: Path, dry: bool) -> Outcome:
    """Run one part."""
    command = (part.dry if dry else part.command).format(python=sys.executable, tests=HERE.parent / "tests")
    program = command.split()[0]
    if shutil.which(program) is None:
        return Outcome(part.name, False, 0.0, f"{program} is not on this machine")
    environment = os.environ | (
        {"TRITON_INTERPRET": "1", "EMU_RESULTS": str(folder)} if dry else {"EMU_RESULTS": str(folder)}
    )
    begun = time.monotonic()
    with (folder / f"{part.name}.log").open("wb") as log:
        try:
            code = subprocess.run(
                command, shell=True, cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT
            ).returncode
            words = "passed" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            code, words = -1, f"stopped after {LIMIT} seconds"
    return Outcome(part.name, code == 0, round(time.monotonic() - begun, 1), words)


def read(folder: Path) -> dict[str, Outcome]:
    """Outcomes of earlier runs."""
    file = folder / "outcomes.json"
    return {name: Outcome(**found) for name, found in json.loads(file.read_text()).items()} if file.exists() else {}


def write(folder: Path, outcomes: dict[str, Outcome]) -> None:
    """Outcomes, and the page."""
    (folder / "outcomes.json").write_text(
        json.dumps({name: asdict(found) for name, found in outcomes.items()}, indent=1)
    )
    rows = []
    for part in PARTS:
        found = outcomes.get(part.name)
        state, spent = (found.words, f"{found.seconds:.0f} s") if found else ("not run yet", "")
        log = f'<a href="{part.name}.log">{part.name}</a>' if found else part.name
        rows.append(f"<tr><td>{log}<td>{html.escape(part.why)}<td>{html.escape(state)}<td>{spent}")
    files = "".join(f'<li><a href="{file.name}">{file.name}</a>' for file in sorted(folder.glob("*.csv")))
    pictures = "".join(f'<p><img src="{file.name}" alt="{file.stem}">' for file in sorted(folder.glob("*.png")))
    (folder / "index.html").write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>The first hour on a GPU</title>"
        "<style>body{font:16px sans-serif;margin:2em}td{padding:.2em 1em .2em 0}img{max-width:100%}</style>"
        f"<h1>The first hour on a GPU</h1><table>{''.join(rows)}</table><h2>Tables</h2><ul>{files}</ul>{pictures}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not passed; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("first_hour"), help="for logs, tables and the page (%(default)s)"
    )
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="all by default")
    parser.add_argument(
        "--again", nargs="+", choices=[part.name for part in PARTS], default=[], help="also where they have passed"
    )
    parser.add_argument("--dry-run", action="store_true", help="every part in small on a CPU")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = read(folder)
    for part in PARTS:
        if options.parts and part.name not in options.parts:
            continue
        if part.name in outcomes and outcomes[part.name].passed and part.name not in options.again:
            continue
        outcomes[part.name] = run(part, folder, options.dry_run)
        write(folder, outcomes)
        print(f"{part.name:12s} {outcomes[part.name].words}, {outcomes[part.name].seconds:.0f} s", flush=True)
    return 0 if all(found.passed for found in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
