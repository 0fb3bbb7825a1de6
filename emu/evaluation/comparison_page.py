"""A comparison as one HTML page: a table for each suite with the models side by side, and their pictures; nothing is fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from emu.evaluation.compared_models import Comparison
from emu.evaluation.figures import Figure, html_page
from emu.evaluation.statistics import Interval

WIDTH, LINE = 150, 10
"""Pixels along the drawn intervals, and between those of two models."""


def comparison_page(found: Comparison) -> str:
    """The page."""
    title = f"Evaluation of {', '.join(found.models)}"
    intro = (
        f"<h1>{html.escape(title)}</h1>"
        '<p class="note">Brackets hold 95 % intervals. Differences are to the first model, item by item, where both met the same '
        "items; those whose interval leaves out 0 are bold.</p>"
    )
    return html_page(title, intro + "".join(section(found, suite) for suite in found.suites) + left_out(found))


def section(found: Comparison, suite: str) -> str:
    """What a suite found, nothing where it gave nothing."""
    figures = found.figures(suite)
    models = [model for model in found.models if (model, suite) in found.reports]
    if not models:
        return ""
    heading = f'<h2>{html.escape(suite)}</h2><p class="note">{html.escape(found.suites[suite])}</p>'
    compared = [model for model in models if any(found.difference(model, suite, name) for name in figures)]
    return heading + table(found, suite, figures, models, compared) + "".join(pictures(found, suite, models))


def table(found: Comparison, suite: str, figures: Sequence[str], models: Sequence[str], compared: Sequence[str]) -> str:
    """Rows of figures, columns of models, then of differences; the intervals drawn at the end."""
    titles = [*models, *(f"{model} - {found.models[0]}" for model in compared)]
    head = "<th></th>" + "".join(f'<th class="number">{html.escape(title)}</th>' for title in titles) + "<th></th>"
    rows = []
    for name in figures:
        cells = [f"<td>{html.escape(name)}</td>"]
        cells += [value_cell(found.value(model, suite, name), found.interval(model, suite, name)) for model in models]
        cells += [difference_cell(found.difference(model, suite, name)) for model in compared]
        cells.append(f"<td>{drawn_intervals([found.interval(model, suite, name) for model in models])}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def value_cell(value: float | None, interval: Interval | None) -> str:
    """A figure and its interval."""
    if value is None:
        return '<td class="number"></td>'
    ends = "" if interval is None else f' <span class="ends">[{interval.low:.3g}, {interval.high:.3g}]</span>'
    return f'<td class="number">{value:.4g}{ends}</td>'


def difference_cell(interval: Interval | None) -> str:
    """A difference, bold where its interval leaves out 0."""
    if interval is None:
        return '<td class="number"></td>'
    told = f'{interval.value:+.3g} <span class="ends">[{interval.low:+.3g}, {interval.high:+.3g}]</span>'
    return f'<td class="number">{f"<b>{told}</b>" if interval.low > 0 or interval.high < 0 else told}</td>'


def drawn_intervals(intervals: Sequence[Interval | None]) -> str:
    """The intervals of the models above one another on one scale: from 0 to 1 where all lie there, else as wide as they are."""
    known = [one for one in intervals if one is not None and math.isfinite(one.low) and math.isfinite(one.high)]
    if not known:
        return ""
    low, high = min(one.low for one in known), max(one.high for one in known)
    first, last = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
    marks = []
    for number, one in enumerate(intervals):
        if one is None or one not in known:
            continue
        start, end, middle = (
            (end - first) / (last - first) * (WIDTH - 8) + 4 for end in (one.low, one.high, one.value)
        )
        y = number * LINE + LINE / 2 + 1
        line = f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>'
        marks.append(f'<g class="model{number % 4}">{line}<circle cx="{middle:.1f}" cy="{y}" r="3"/></g>')
    return f'<svg width="{WIDTH}" height="{len(intervals) * LINE + 2}" role="img" aria-label="intervals">{"".join(marks)}</svg>'


def pictures(found: Comparison, suite: str, models: Sequence[str]) -> list[str]:
    """The pictures of a suite, with the names of the models."""
    shown = []
    for model in models:
        report = found.reports[model, suite]
        if report.picture is not None:
            shown.append(Figure(f"{suite}, {model}", report.note, report.picture, smooth=True))
        shown += [
            Figure(f"{figure.title}, {model}", figure.note, figure.data, figure.kind, figure.smooth)
            for figure in report.gallery
        ]
    return [figure.to_html() for figure in shown]


def left_out(found: Comparison) -> str:
    """Which suites gave nothing for which model, and why; those of one reason together."""
    if not found.left_out:
        return ""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (model, suite), reason in found.left_out.items():
        reasons.setdefault((model, reason), []).append(suite)
    rows = "".join(
        f"<tr><td>{html.escape(model)}</td><td>{html.escape(', '.join(suites))}</td><td>{html.escape(reason)}</td></tr>"
        for (model, reason), suites in reasons.items()
    )
    head = "<tr><th>model</th><th>suites</th><th>why</th></tr>"
    return f'<h2>Left out</h2><div class="wide"><table>{head}{rows}</table></div>'
