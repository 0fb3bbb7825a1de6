"""`report.html`: one file that shows everything, pictures inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #22262e; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #d5d9e0; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } img.smooth { image-rendering: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #e5e8ee; }
td.number { font-variant-numeric: tabular-nums; text-align: right; } .short { color: #b3261e; } .met { color: #1b7f3b; }
p.note { color: #5a6270; } pre { background: #f4f5f8; padding: .8rem; overflow-x: auto; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        title: heading.
        note: what one sees.
        data: the file.
        kind: "png" or "gif".
        smooth: whether a browser may smooth it.
    """

    title: str
    note: str
    data: bytes
    kind: str = "png"
    smooth: bool = False

    def to_html(self) -> str:
        """A section with the picture inside."""
        source = f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"
        look = ' class="smooth"' if self.smooth else ""
        note = f'<p class="note">{html.escape(self.note)}</p>'
        return f'<h2>{html.escape(self.title)}</h2>{note}<img{look} alt="{html.escape(self.title)}" src="{source}">'


TASKS = {
    "Text to image": ("text_to_image", ("text_to_image_accuracy",)),
    "Image to text": ("image_to_text", ("image_to_text_accuracy",)),
    "Text to video": ("video", ("video_direction_accuracy", "video_digit_accuracy")),
    "Image to video": ("image_to_video", ("image_to_video_direction_accuracy", "image_to_video_digit_accuracy")),
    "Video continuation": (
        "video_continuation",
        ("video_continuation_direction_accuracy", "video_continuation_digit_accuracy"),
    ),
    "Vision tokenizer": ("", ("reconstruction_psnr", "codebook_use")),
}
"""What the demo shows: title -> (prefix of the task's figures, those that have a goal)."""


def goal_mark(value: float, goal: float, beyond: bool) -> str:
    """What to say of a figure beside its goal; `beyond` is a goal that a run of this length is known to miss."""
    if value >= goal:
        return "reached"
    return "short of it; emu demo --long reaches it" if beyond else "short of it"


def goal_rows(metrics: Mapping[str, Any], goals: Mapping[str, float], beyond: Sequence[str]) -> str:
    """Table rows of every task: its figures with their goals, and how varied its samples are."""
    rows = []
    for title, (prefix, names) in TASKS.items():
        for number, name in enumerate(names):
            value, goal = metrics[name], goals[name]
            look = "met" if value >= goal else "short"
            words = name.removeprefix(prefix).strip("_").replace("_", " ")
            varied = metrics.get(f"{prefix}_variety") if number == 0 else None
            rows.append(
                f"<tr><td>{title if number == 0 else ''}</td><td>{html.escape(words)}</td>"
                f'<td class="number">{value:g}</td><td class="number">{goal:g}</td>'
                f'<td class="{look}">{goal_mark(value, goal, name in beyond)}</td>'
                f'<td class="number">{"" if varied is None else f"{varied:.2f}"}</td></tr>'
            )
    return "".join(rows)


def other_rows(metrics: Mapping[str, Any], goals: Mapping[str, float]) -> str:
    """Table rows of all other figures that are numbers."""
    shown = {name: value for name, value in metrics.items() if name not in goals and isinstance(value, int | float)}
    return "".join(
        f'<tr><td>{html.escape(name.replace("_", " "))}</td><td class="number">{value:g}</td></tr>'
        for name, value in shown.items()
    )


def report_page(
    metrics: Mapping[str, Any],
    goals: Mapping[str, float],
    beyond: Sequence[str],
    figures: Sequence[Figure],
    example: str,
) -> str:
    """The page.

    Args:
        metrics: figures by name, as in `metrics.json`.
        goals: what some of them should reach.
        beyond: those goals that a run of this length is known to miss.
        figures: pictures in order.
        example: Python that uses the trained model.
    """
    parts = "".join(figure.to_html() for figure in figures)
    heads = "".join(f"<th>{head}</th>" for head in ("task", "figure", "value", "goal", "", "variety"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Emu demo</title><style>{STYLE}</style></head><body>'
        "<h1>Emu on handwritten digits</h1>"
        '<p class="note">A text tokenizer, a vision tokenizer and one transformer, trained from nothing on 1,347 real handwritten digits. '
        "Everything below was made by that one model, or measured on the 450 digits that were held out.</p>"
        f"<h2>Every task</h2><table><tr>{heads}</tr>{goal_rows(metrics, goals, beyond)}</table>"
        '<p class="note">Variety: how far two samples of one digit differ, beside two real held-out ones (1 is as varied, 0 is one picture '
        "again and again); of answers, how many different ones there are beside how many there should be.</p>"
        f"<details><summary>all other figures</summary><table>{other_rows(metrics, goals)}</table></details>"
        f"<h2>Use it</h2><pre>{html.escape(example)}</pre>{parts}</body></html>\n"
    )
