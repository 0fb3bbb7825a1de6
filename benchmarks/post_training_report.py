"""The tables and pictures of docs/results.md from what `benchmarks/post_training.py measure` left."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emu.evaluation.statistics import Interval, paired_difference
from emu_tokenizers.files import write_json

BASE = "base"
KINDS = ("grpo", "loose", "plain", "dpo", "qft", "vqa")
TRAINED_FOR = ("relation", "negation, two objects", "counting")
PAIR = "free places, share of the truth, two objects/guidance 1"
CURVES = {
    "grpo": ("train/reward", "train/distinct", "train/entropy", "train/kl"),
    "loose": ("train/reward", "train/distinct", "train/entropy", "train/kl"),
    "dpo": ("train/preference_loss", "train/next_token_loss", "train/margin", "train/accuracy"),
    "qft": ("train/loss",),
    "vqa": ("train/loss",),
}
"""Columns of `metrics.csv` that say whether a run of a kind is as it should be."""
COLOURS = {
    BASE: "0.5",
    "grpo": "tab:blue",
    "loose": "tab:cyan",
    "plain": "tab:orange",
    "dpo": "tab:green",
    "qft": "tab:purple",
    "vqa": "tab:brown",
}

LABELS = {
    BASE: "before",
    "grpo": "GRPO",
    "loose": "GRPO, kl 0.02",
    "plain": "plain training",
    "dpo": "DPO",
    "qft": "QFT",
    "vqa": "SFT on questions",
}
LEAST_RIGHT = 0.5
"""Shares below it are cut off, so that the others can be told apart."""

Found = Mapping[str, Mapping[str, Any]]
"""By kind, then by seed: what was measured."""


def report(folder: Path, pictures: Path | None) -> None:
    """Write `report.md`, `report.json` and the pictures."""
    pictures = pictures or folder
    pictures.mkdir(parents=True, exist_ok=True)
    found = read(folder)
    seconds = {file.stem: json.loads(file.read_text())["seconds"] for file in (folder / "seconds").glob("*.json")}
    rows = {kind: differences(found, kind, BASE) for kind in KINDS if kind in found}
    for kind in ("grpo", "loose"):
        if {kind, "plain"} <= set(found):
            rows[f"{kind} against plain"] = differences(found, kind, "plain")
    text = "\n\n".join(
        [
            skills_table(rows),
            variety_table(found),
            bits_table(found),
            questions_table(found),
            curves_table(folder, found),
            f"processor seconds a step: {seconds}",
        ]
    )
    (folder / "report.md").write_text(text + "\n")
    write_json(
        folder / "report.json",
        {name: {skill: one.to_dict() for skill, one in some.items()} for name, some in rows.items()},
    )
    print(text)
    if seconds and any((folder / "curves").glob("*.json")):
        save(learning_picture(folder / "curves", seconds), pictures / "post_training_skills.png")
    if in_order(found, "guidance"):
        save(variety_picture(found), pictures / "post_training_variety.png")
    if any(folder.glob("*/*/metrics.csv")):
        save(normal_picture(folder, found), pictures / "post_training_curves.png")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured so far; the seeds of a kind without a measured start are left out."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(file for file in (folder / "measured").iterdir() if file.suffix in (".json", ".partial")):
        seed, _, kind = file.stem.rpartition("-")
        found.setdefault(kind, {})[seed] = json.loads(file.read_text())
    return {kind: {seed: one for seed, one in some.items() if seed in found[BASE]} for kind, some in found.items()}


class Difference:
    """What a skill gained, over the seeds.

    Attributes:
        before, after: shares right, the mean over the seeds.
        interval: of the mean paired difference: each item counts by its mean over the seeds.
        each: the difference of each seed.
    """

    def __init__(self, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        self.before, self.after = float(np.mean(before)), float(np.mean(after))
        self.interval: Interval = paired_difference(np.mean(after, axis=0), np.mean(before, axis=0))
        self.each = [float(one.mean() - other.mean()) for one, other in zip(after, before, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        interval = [self.interval.value, self.interval.low, self.interval.high]
        return {"before": self.before, "after": self.after, "difference": interval, "seeds": self.each}


def differences(found: Found, kind: str, beside: str) -> dict[str, Difference]:
    """By skill, and under "mean of the three" for those that reinforcement is meant to raise together."""
    seeds = [seed for seed in found[kind] if seed in found[beside]]
    right = {
        side: {
            name: [digits(found[side][seed]["skills"][name]) for seed in seeds]
            for name in found[side][seeds[0]]["skills"]
        }
        for side in (kind, beside)
    }
    for skills in right.values():
        skills["mean of the three"] = [
            np.mean(some, axis=0) for some in zip(*(skills[n] for n in TRAINED_FOR), strict=True)
        ]
    return {name: Difference(right[beside][name], right[kind][name]) for name in right[kind]}


def digits(text: str) -> np.ndarray:
    """(n,) float64 of a digit for each answer."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.float64) - ord("0")


def skills_table(rows: Mapping[str, Mapping[str, Difference]]) -> str:
    """A row for each skill, and for each kind what it was, what it became and the difference."""
    names = list(next(iter(rows.values())))
    lines = ["| skill | before | " + " | ".join(rows) + " |", "|---" * (len(rows) + 2) + "|"]
    for name in [*names[-1:], *names[:-1]]:
        cells = []
        for some in rows.values():
            one = some[name]
            seeds = " ".join(f"{value:+.3f}" for value in one.each)
            cells.append(
                f"{one.after:.3f}: {one.interval.value:+.3f} [{one.interval.low:+.3f}, {one.interval.high:+.3f}] ({seeds})"
            )
        lines.append(f"| {name} | {next(iter(rows.values()))[name].before:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def variety_table(found: Found) -> str:
    """Entropy of what prompts leave free at guidance 1, as a share of the truth, for each seed."""
    lines = [
        "| kind | one object: bits of the truth, seeds | share | two objects: places, share of the truth, seeds |",
        "|---" * 4 + "|",
    ]
    for kind in in_order(found, "guidance"):
        points = [one["guidance"]["one"][0] for one in having(found[kind], "guidance")]
        bits = [point["bits"] for point in points]
        pairs = [one["guidance"]["two"][PAIR]["value"] for one in having(found[kind], "guidance")]
        told = " ".join(f"{value:.3f}" for value in bits)
        share = fmean(value / point["truth"] for value, point in zip(bits, points, strict=True))
        lines.append(
            f"| {kind} | {told} of {points[0]['truth']:.3f} | {share:.3f} | {' '.join(f'{pair:.3f}' for pair in pairs)} |"
        )
    return "\n".join(lines)


def bits_table(found: Found) -> str:
    """Excess bits of every task before, and for each kind the mean paired difference over documents and seeds, with the largest seed."""
    kinds = [kind for kind in in_order(found) if kind != BASE]
    lines = ["| task | excess before | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for task in next(iter(found[BASE].values()))["bits"]:
        before = {seed: np.array(one["bits"][task]["model"]) for seed, one in found[BASE].items()}
        excess = fmean(
            float((before[seed] - np.array(one["bits"][task]["exact"])).mean()) for seed, one in found[BASE].items()
        )
        cells = []
        for kind in kinds:
            after = {seed: np.array(one["bits"][task]["model"]) for seed, one in found[kind].items()}
            mean = paired_difference(
                np.mean(list(after.values()), axis=0), np.mean([before[seed] for seed in after], axis=0)
            )
            worst = max(float((after[seed] - before[seed]).mean()) for seed in after)
            cells.append(f"{mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}] (at most {worst:+.3f})")
        lines.append(f"| {task} | {excess:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def questions_table(found: Found) -> str:
    """Right answers to questions, of models that were trained to answer."""
    lines = ["| questions | right, for each seed | chance |", "|---|---|---|"]
    some = having(found.get("vqa", {}), "questions")
    for name in some[0]["questions"] if some else ():
        shares = " ".join(f"{one['questions'][name]['shares'][f'vqa/{name}']['value']:.3f}" for one in some)
        lines.append(f"| {name} | {shares} | {some[0]['questions'][name]['chance']:.2f} |")
    return "\n".join(lines)


def metrics(folder: Path, kind: str, seeds: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The columns of the curves of each seed's run."""
    for seed in seeds:
        file = folder / seed / kind / "metrics.csv"
        if file.is_file():
            with file.open(newline="") as handle:
                rows = list(csv.DictReader(handle))
            yield {name: np.array([float(row[name] or "nan") for row in rows]) for name in ("step", *CURVES[kind])}


def curves_table(folder: Path, found: Found) -> str:
    """What each curve is at the beginning, in the middle and at the end, means over the seeds."""
    lines = ["| kind | curve | first rows | middle | last rows |", "|---" * 5 + "|"]
    for kind in CURVES:
        runs = list(metrics(folder, kind, list(found.get(kind, {}))))
        for name in CURVES[kind] if runs else ():
            parts = [np.array_split(run[name], 5) for run in runs]
            cells = [
                f"{fmean(float(np.nanmean(part[place])) for part in parts if len(part[place])):.3f}"
                for place in (0, 2, 4)
            ]
            lines.append(f"| {kind} | {name.removeprefix('train/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_order(found: Found, part: str = "skills") -> list[str]:
    """The kinds of which a part was measured, the start first."""
    return [kind for kind in (BASE, *KINDS) if having(found.get(kind, {}), part)]


def having(seeds: Mapping[str, Any], part: str) -> list[Any]:
    """What was measured of the seeds that have a part."""
    return [one for one in seeds.values() if part in one]


def learning_picture(folder: Path, seconds: Mapping[str, float]) -> Figure:
    """Mean share of the three skills against processor minutes, of GRPO and of plain training; a thin line for each seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind in ("grpo", "loose", "plain"):
        lines = []
        for file in sorted(folder.glob(f"*-{kind}.json")):
            steps = json.loads(file.read_text())["steps"]
            each = seconds["plain" if kind == "plain" else "grpo"]
            minutes = np.array([int(step) * each / 60 for step in steps])
            lines.append([fmean(digits(some[name]).mean() for name in TRAINED_FOR) for some in steps.values()])
            axes.plot(minutes, lines[-1], color=COLOURS[kind], linewidth=0.7, alpha=0.5)
        if lines:
            axes.plot(minutes, np.mean(lines, axis=0), "o-", color=COLOURS[kind], label=LABELS[kind])
    axes.set_xlabel("processor minutes (evaluation aside)")
    axes.set_ylabel("right: relation, negation of two, counting")
    axes.legend()
    return figure


def variety_picture(found: Found) -> Figure:
    """Accuracy against variety at each guidance scale, before and after each kind, means over the seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    one, two = figure.subplots(1, 2)
    for kind in in_order(found, "guidance"):
        runs = [measured["guidance"] for measured in having(found[kind], "guidance")]
        scales = [point["scale"] for point in runs[0]["one"]]
        sides = {
            one: [[[point["bits"] / point["truth"], point["right"]] for point in run["one"]] for run in runs],
            two: [
                [
                    [
                        run["two"][f"{name}, two objects/guidance {scale:g}"]["value"]
                        for name in ("free places, share of the truth", "right")
                    ]
                    for scale in scales
                ]
                for run in runs
            ],
        }
        for axes, values in sides.items():
            mean = np.mean(values, axis=0)
            axes.plot(mean[:, 0], mean[:, 1], "o-", markersize=3, linewidth=1, color=COLOURS[kind], label=LABELS[kind])
            if kind == BASE:
                for scale, (x, y) in zip(scales, mean, strict=True):
                    if y < LEAST_RIGHT:
                        continue
                    axes.annotate(f"{scale:g}", (x, y), xytext=(3, -9), textcoords="offset points", fontsize=7)
    for axes, title in ((one, "one object"), (two, "two objects")):
        axes.set_title(title)
        axes.set_ylim(LEAST_RIGHT, 1.02)
        axes.set_xlabel("what the prompt leaves free (entropy, share of the truth)")
        axes.set_ylabel("right pictures")
    one.legend(fontsize=8)
    return figure


def normal_picture(folder: Path, found: Found) -> Figure:
    """The curves of every kind, a thin line for each seed."""
    runs = {kind: list(metrics(folder, kind, list(found.get(kind, {})))) for kind in CURVES}
    panels = [(kind, name) for kind, names in CURVES.items() for name in names if runs[kind]]
    rows = -(-len(panels) // 4)
    figure = Figure(figsize=(12, 2.4 * rows), layout="constrained")
    for number, (kind, name) in enumerate(panels):
        axes = figure.add_subplot(rows, 4, number + 1)
        for run in runs[kind]:
            axes.plot(run["step"], run[name], color=COLOURS[kind], linewidth=0.8)
        axes.set_title(f"{LABELS[kind]}: {name.removeprefix('train/')}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write a PNG file."""
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit("call python benchmarks/post_training.py report")
