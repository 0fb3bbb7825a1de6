"""The report of `emu demo pictures`: every task with its goal and what copying and the mean picture get, and what the model made."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.demo.pictures.emoji_measures import (
    measure_animated,
    measure_described,
    measure_drawn,
    measure_quality,
    measure_recoloured,
)
from emu.demo.pictures.tone_judge import ToneJudge
from emu.evaluation.figures import Figure, html_page
from emu.own_data.clip_report import moving
from emu.own_data.picture_measures import Measured
from emu.own_data.picture_report import PANELS, curves_of, descriptions, sheet, write_report
from emu.own_data.picture_store import PictureStore
from emu.pipeline import Emu

COLUMNS, MOST_CLIPS = 12, 8


@dataclass(frozen=True)
class Goal:
    """A figure that has a goal.

    Attributes:
        task: that it belongs to.
        words: what it is.
        least: what it should reach.
    """

    task: str
    words: str
    least: float


NEAREST = "the asked picture is the nearest of all real ones"
TONE = "the tone is right, told by the same person in five tones"
GOALS = {
    "reconstruction_psnr": Goal("Vision tokenizer", "held-out pictures after their codes, dB", 22.5),
    "drawn_is_nearest": Goal("Draw", NEAREST, 0.2),
    "drawn_tone_right": Goal("Draw", TONE, 0.8),
    "described_right": Goal("Describe", "person and tone are right", 0.7),
    "recoloured_is_nearest": Goal("Recolour by words", NEAREST, 0.2),
    "recoloured_tone_right": Goal("Recolour by words", TONE, 0.8),
    "animated_motion_right": Goal("Animate", "the motion is right, undone and compared", 0.85),
    "animated_right": Goal("Animate", f"the motion is right, and to the first frame {NEAREST}", 0.5),
}
"""By the names of metrics.json."""
EXAMPLE = """from emu import Emu

emu = Emu.from_pretrained({folder!r})
picture = emu.generate_images("woman singer, dark skin tone")[0].image
print(emu.generate_text([[picture]])[0])
light = emu.generate_images([[picture, "light skin tone"]])[0].image
clip = emu.generate_videos("cat bouncing")[0]
clip.save("cat.gif")
"""


class EmojiReport:
    """Stage: measures a model on what `StoreEmoji` held out, and writes report.html and metrics.json.

    Args:
        model: folder of the model, or the name of a bundled one.
        pictures: folder of the pictures.
        curves: metrics.csv of the runs, by "vision" and "transformer".
        each: drawings of each held-out picture.
        seed: of the drawings.
    """

    def __init__(
        self, model: str, pictures: str, curves: Mapping[str, str] | None = None, each: int = 4, seed: int = 0
    ) -> None:
        if each < 1:
            raise ValueError(f"each is {each}; expected 1 or more")
        self.model, self.pictures, self.curves, self.each, self.seed = model, pictures, dict(curves or {}), each, seed

    def run(self, folder: Path) -> int:
        """Measure and write; see `emu.training.stages.JobStage`."""
        emu = Emu.from_pretrained(self.model)
        judge = ToneJudge(PictureStore(Path(self.pictures)))
        assert emu.tokenizer.vision is not None
        found = Measured({"train": len(judge.train), "held_out": len(judge.store.rows("held_out"))})
        found.add(
            measure_quality(emu.tokenizer.vision, judge),
            measure_drawn(emu, judge, self.each, self.seed),
            measure_described(emu, judge),
            measure_recoloured(emu, judge, self.each, self.seed),
            measure_animated(emu, judge, self.seed),
        )
        example = EXAMPLE.format(folder=str(Path(self.model)))
        write_report(folder, report_page(found, curves_of(self.curves, panels()), example), found)
        return 0


def missed(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the goals that were not reached."""
    return [name for name, goal in GOALS.items() if metrics[name] < goal.least]


def panels() -> dict[str, dict[str, tuple[str, ...]]]:
    """Curves of the four tasks instead of two."""
    tasks = ("draw", "describe", "recolour", "animate")
    of_part = {"Transformer: training": "train", "Held out": "val"}
    both = {title: tuple(f"{part}/source_loss/{task}" for task in tasks) for title, part in of_part.items()}
    return {**PANELS, "transformer": both}


def goal_rows(metrics: Mapping[str, Any]) -> str:
    """Table rows: each goal with what was reached, and what copying and the mean picture get."""
    rows = []
    for name, goal in GOALS.items():
        look = "met" if metrics[name] >= goal.least else "short"
        shown = [f'<td class="number {look}">{metrics[name]:g}</td>', f'<td class="number">{goal.least:g}</td>']
        for kind in ("copied", "mean"):
            value = metrics.get(f"{name}_{kind}")
            shown.append(f'<td class="number">{"" if value is None else f"{value:g}"}</td>')
        rows.append(f"<tr><td>{html.escape(goal.task)}</td><td>{html.escape(goal.words)}</td>{''.join(shown)}</tr>")
    return "".join(rows)


def figures_of(found: Measured) -> dict[str, Figure]:
    """Pictures of what was made, by task."""
    pictures, texts = found.pictures, found.texts
    drawn = sheet([pictures[name] for name in ("drawn", "asked", "nearest")], COLUMNS)
    changed = sheet([pictures[name] for name in ("recoloured_from", "recoloured", "recoloured_asked")], COLUMNS)
    rebuilt = sheet([pictures["asked"], pictures["reconstructions"]], COLUMNS)
    clips = [pictures[name][:: -(-len(pictures[name]) // MOST_CLIPS)] for name in ("animated", "animated_real")]
    shown = texts["animated"][:: -(-len(texts["animated"]) // MOST_CLIPS)]
    return {
        "draw": Figure(
            "Draw",
            "New combinations of person and tone; below each drawing the real picture, which the model never saw, and below that the "
            "training picture that is nearest to the drawing. Nothing is picked. " + "; ".join(texts["asked"][:COLUMNS]),
            drawn,
        ),
        "recolour": Figure(
            "Recolour by words",
            "What was given, what the model drew after words such as “dark skin tone”, and the real picture, which it never saw. "
            + "; ".join(texts["recoloured"][:COLUMNS]),
            changed,
        ),
        "animate": moving("Animate", "Motions that a picture was never seen in, above the real clips. " + "; ".join(shown), clips),
        "rebuilt": Figure("Reconstructions", "Held-out pictures, and below each what its codes keep of it.", rebuilt),
    }  # fmt: skip


def report_page(found: Measured, curves: list[Figure], example: str) -> str:
    """The page."""
    metrics, figures = found.metrics, figures_of(found)
    others = "".join(
        f'<tr><td>{html.escape(name.replace("_", " "))}</td><td class="number">{value:g}</td></tr>'
        for name, value in metrics.items()
        if name not in GOALS and name.removesuffix("_copied").removesuffix("_mean") not in GOALS
    )
    heads = "".join(f"<th>{head}</th>" for head in ("task", "figure", "value", "goal", "copying", "mean"))
    rest = [figures["recolour"], figures["animate"], figures["rebuilt"], *curves]
    return html_page(
        "Emu on pictures",
        '<h1>Emu on pictures</h1><p class="note">A text tokenizer, a vision tokenizer and one transformer, trained from nothing on '
        f"{metrics['train']:,} pictures of Noto Emoji. Of {metrics['held_out']} people one skin tone was held out: everything below was "
        "made by that one model, or measured on what it never saw.</p>"
        f"<h2>Every task</h2><table><tr>{heads}</tr>{goal_rows(metrics)}</table>"
        '<p class="note">Copying: the same figure of the training picture (or clip) with the nearest caption, of pictures the training '
        "picture that is nearest. Mean: of the mean picture. A share of drawings counts only those to which the picture that was asked "
        "for is nearer than any other real one at 16x16 pixels, so that a copy of a training picture never counts.</p>"
        f"<details><summary>all other figures</summary><table>{others}</table></details>"
        f"<h2>Use it</h2><pre>{html.escape(example)}</pre>{figures['draw'].to_html()}{descriptions(found)}"
        f"{''.join(figure.to_html() for figure in rest)}",
    )
