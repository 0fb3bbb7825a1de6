"""`report.html`: one file that shows everything, pictures inside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from emu.evaluation.figures import Figure, html_page

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
    return html_page(
        "Emu demo",
        "<h1>Emu on handwritten digits</h1>"
        '<p class="note">A text tokenizer, a vision tokenizer and one transformer, trained from nothing on 1,347 real handwritten digits. '
        "Everything below was made by that one model, or measured on the 450 digits that were held out.</p>"
        f"<h2>Every task</h2><table><tr>{heads}</tr>{goal_rows(metrics, goals, beyond)}</table>"
        '<p class="note">Variety: how far two samples of one digit differ, beside two real held-out ones (1 is as varied, 0 is one picture '
        "again and again); of answers, how many different ones there are beside how many there should be.</p>"
        f"<details><summary>all other figures</summary><table>{other_rows(metrics, goals)}</table></details>"
        f"<h2>Use it</h2><pre>{html.escape(example)}</pre>{parts}",
    )
