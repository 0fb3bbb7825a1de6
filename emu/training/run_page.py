"""`run.html`: a run on one page that asks nothing of any address, and that loads itself again while the run trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from emu.training.samples import SAMPLES_FOLDER, read_samples, sample_folders
from emu_tokenizers.files import write_file
from emu_tokenizers.training.gradient_guard import SKIPPED_FILE

PAGE_FILE = "run.html"
SECONDS_BETWEEN_LOADS = 15
MOST_POINTS = 300
"""Of a drawn curve; of more, every so many are drawn as their mean."""
SETS_OF_SAMPLES, SKIPPED_SHOWN = 4, 8
WIDTH, HEIGHT, LEFT, BOTTOM = 520, 220, 56, 24
COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0f766e", "#525252")
MODALITIES = ("image", "video")
TOLD = (
    "train/loss",
    "val/loss",
    "train/accuracy",
    "train/tokens_per_second",
    "train/mfu",
    "train/waiting",
    "train/skipped_steps",
)
"""Quantities whose last value stands above the curves."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8889; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1140px; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
.state { color: #666; margin: .2rem 0 1rem; } @media (prefers-color-scheme: dark) { .state { color: #aaa; } }
dl { display: flex; flex-wrap: wrap; gap: .5rem 1.8rem; margin: 0; } dt { font-size: .8rem; } dd { margin: 0; font-size: 1.25rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; } svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .9em; }
.samples { display: flex; flex-wrap: wrap; gap: .8rem; } .samples img { min-width: 96px; max-width: 320px; image-rendering: pixelated; }
.samples figure { max-width: 320px; } li { overflow-wrap: anywhere; }
"""

Rows = Mapping[int, Mapping[str, float]]


def write_page(folder: Path, rows: Rows, status: str) -> None:
    """Write the page of a run.

    Args:
        folder: of the run, with its samples and its list of skipped steps.
        rows: of the curves: values by step and name.
        status: "" while it trains; how it ended otherwise, as Lightning says it.
    """
    title = escape(folder.absolute().name)
    again = "" if status else f'<meta http-equiv="refresh" content="{SECONDS_BETWEEN_LOADS}">'
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    state = f"step {max(rows, default=0):,}, {at}: {escape(status) or 'training'}"
    body = [
        f'<h1>{title}</h1><p class="state">{state}</p>',
        _told(rows),
        _panels(rows),
        _skipped(folder),
        _samples(folder),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{again}<title>{title}</title>'
    text = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(body)}</body></html>\n'
    )
    write_file(folder / PAGE_FILE, text.encode())


def panels_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Quantities by the panel that they are drawn in: training and validation together, and the parts of a whole."""
    panels: dict[str, list[str]] = {}
    for name in sorted(names):
        stage, *parts = name.split("/")
        if stage not in ("train", "val") or not parts:
            title = stage
        elif parts[0] in MODALITIES and len(parts) > 1:
            title = "/".join(parts[1:])
        else:
            title = parts[0] + (" by part" if len(parts) > 1 else "")
        panels.setdefault(title.replace("_", " "), []).append(name)
    return dict(sorted(panels.items(), key=lambda panel: (not panel[0].startswith("loss"), panel[0])))


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: means of neighbours where there are more."""
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _told(rows: Rows) -> str:
    last: dict[str, float] = {}
    for _, row in sorted(rows.items()):
        last.update(row)
    told = [f"<div><dt>{escape(name)}</dt><dd>{last[name]:.4g}</dd></div>" for name in TOLD if name in last]
    return f"<dl>{''.join(told)}</dl>" if told else ""


def _panels(rows: Rows) -> str:
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, row in sorted(rows.items()):
        for name, value in row.items():
            if math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    drawn = [_panel(title, {name: curves[name] for name in names}) for title, names in panels_of(list(curves)).items()]
    return (
        f'<h2>Curves</h2><div class="panels">{"".join(drawn)}</div>' if drawn else "<p>No step has been logged yet.</p>"
    )


def _panel(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    points = [point for curve in curves.values() for point in curve]
    right = max(max(x for x, _ in points), 1)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = (low, high) if low < high else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * x / right
        return f"{across:.1f},{8 + (HEIGHT - BOTTOM - 8) * (high - y) / (high - low):.1f}"

    marks, key = [], []
    for part in range(5):
        value, (_, down) = low + (high - low) * part / 4, place(0, low + (high - low) * part / 4).split(",")
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{down}" y2="{down}" stroke="var(--line)"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{float(down) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        across = place(right * part / 4, low).split(",")[0]
        marks.append(f'<text x="{across}" y="{HEIGHT - 6}" text-anchor="middle">{right * part / 4:,.0f}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(x, y) for x, y in thinned(curve))
        shape = f'points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"'
        marks.append(f"<polyline {shape}><title>{escape(name)}</title></polyline>")
        if len(curve) == 1:
            across, down = line.split(",")
            marks.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        key.append(f'<span class="key" style="background:{colour}"></span>{escape(name)} {curve[-1][1]:.4g}')
    label = escape(f"{title} over steps")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
    return f"<figure><b>{escape(title)}</b>{svg}<figcaption>{''.join(key)}</figcaption></figure>"


def _skipped(folder: Path) -> str:
    file = folder / SKIPPED_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    if not lines:
        return ""
    told = []
    for entry in map(json.loads, lines[-SKIPPED_SHOWN:]):
        few = [f"{document['source']} {document['number']}" for document in entry["documents"][:8]]
        more = len(entry["documents"]) - len(few)
        told.append(f"step {entry['step']}: {entry['why']}; {', '.join(few)}{f' and {more} more' if more > 0 else ''}")
    items = "".join(f"<li>{escape(text)}</li>" for text in told)
    return f"<h2>Skipped steps</h2><p>{len(lines)} in all, {SKIPPED_FILE}; the last:</p><ul>{items}</ul>"


def _samples(folder: Path) -> str:
    sets = []
    for step, place in reversed(sample_folders(folder)[-SETS_OF_SAMPLES:]):
        figures = []
        for name, sample in read_samples(place).items():
            source = f"{SAMPLES_FOLDER}/{place.name}/{sample['file']}" if "file" in sample else ""
            told = ": ".join(escape(text) for text in (sample["prompt"], sample["text"]) if text)
            image = f'<img src="{escape(source)}" alt="{escape(name)}: {told}">' if source else ""
            figures.append(f"<figure>{image}<figcaption>{told}</figcaption></figure>")
        sets.append(f'<h2>Samples of step {step:,}</h2><div class="samples">{"".join(figures)}</div>')
    return "".join(sets)
