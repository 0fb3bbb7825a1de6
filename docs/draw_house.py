"""Draw docs/house.svg, the picture of docs/architecture.md, from the floors that the page shows: python docs/draw_house.py"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
WIDTH, MARGIN, GAP = 960, 20, 6
ROW, SMALL_ROW = 42, 26
CAPTIONS = {
    "cli": "one file a command",
    "demo": "handwritten digits; people in five skin tones",
    "evaluation": "suites, skills, calibration, statistics",
    "worlds": "rendered, with exact probabilities",
    "pipeline": "Emu: one method a job",
    "training": "module, optimizer, checkpoints, resume",
    "hub": "whole models of any family, in and out",
    "data": "sources, mixtures, loaders, shards",
    "generation": "engine, sampling, guidance",
    "model": "transformer, cache, loss",
    "families": "what each released family is",
    "multimodal_tokenizer": "documents to ids and back",
    "tokenizer_folder": "what a tokenizer saves",
    "layouts": "the grammar of documents",
    "modalities": "images, clips, boxes",
}
BELOW = (
    ("emu_tokenizers", "#dcebdc", ("text", "pixels", "quantizers", "vision", "training")),
    (
        "emu_kernels",
        "#e9e2d3",
        ("attention", "linear_cross_entropy", "guided_sample", "nearest_code", "rms_norm", "rotary"),
    ),
)


def floors() -> list[list[str]]:
    """Rooms of each floor, the ground first."""
    block = re.search(r"^```floors\n(.*?)^```", (DOCS / "architecture.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None, "docs/architecture.md has no block of floors"
    return [line.split() for line in re.split(r"\n(?! )", block[1].rstrip())]


def box(x: float, y: float, width: float, height: float, fill: str, name: str, caption: str = "") -> str:
    """A room: its name, and under it what it is for."""
    middle, first = x + width / 2, y + height / 2 + (-3 if caption else 4)
    lines = [f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="5" fill="{fill}" stroke="#8a97a3"/>']
    size = 13 if height == ROW else 11
    lines.append(f'<text x="{middle:.1f}" y="{first}" font-size="{size}" font-weight="600">{escape(name)}</text>')
    if caption:
        lines.append(f'<text x="{middle:.1f}" y="{first + 15}" font-size="11" fill="#4a5661">{escape(caption)}</text>')
    return "\n".join(lines)


def row(
    names: list[str] | tuple[str, ...], y: float, height: float, fill: str, x: float, width: float
) -> Iterator[str]:
    """Rooms of one floor side by side."""
    each = (width - GAP * (len(names) - 1)) / len(names)
    for number, name in enumerate(names):
        yield box(
            x + number * (each + GAP), y, each, height, fill, name, CAPTIONS.get(name, "") if height == ROW else ""
        )


def frame(y: float, height: float, title: str) -> str:
    """The outline of a package, with its name."""
    outline = f'<rect x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="8" fill="none" stroke="#5b6b79"/>'
    name = f'<text x="{MARGIN + 12}" y="{y + 19}" font-size="14" font-weight="700" text-anchor="start">{title}</text>'
    return f"{outline}\n{name}"


def house() -> str:
    """The picture as SVG."""
    ground, *above = floors()
    x, width = MARGIN + 12, WIDTH - 2 * MARGIN - 24 - 70  # the arrow stands to the right
    parts, y = [], MARGIN + 28
    for names in reversed(above):
        parts += row(names, y, ROW, "#dfe8f1", x, width)
        y += ROW + GAP
    columns = 6
    for start in range(0, len(ground), columns):
        parts += row(ground[start : start + columns], y, SMALL_ROW, "#eef1f4", x, width)
        y += SMALL_ROW + GAP
    parts.append(frame(MARGIN, y - MARGIN + 6, "emu"))
    y += 6
    for package, fill, names in BELOW:
        y += 14
        parts += row(names, y + 28, SMALL_ROW, fill, x, width)
        parts.append(frame(y, 28 + SMALL_ROW + 10, package))
        y += 28 + SMALL_ROW + 10
    arrow = WIDTH - MARGIN - 40
    parts.append(
        f'<path d="M {arrow} {MARGIN + 40} V {y - 34}" stroke="#5b6b79" stroke-width="3" marker-end="url(#head)"/>'
    )
    parts.append(
        f'<text x="0" y="0" font-size="13" transform="translate({arrow + 18} {y / 2}) rotate(90)">imports point down</text>'
    )
    arrowhead = '<path d="M0 0 L6 3 L0 6 z" fill="#5b6b79"/>'
    style = 'font-family="sans-serif" text-anchor="middle" fill="#1f2933"'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN}" {style}>',
            f'<marker id="head" markerWidth="8" markerHeight="8" refX="4" refY="3" orient="auto">{arrowhead}</marker>',
            f'<rect width="{WIDTH}" height="{y + MARGIN}" rx="10" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        )
    )


if __name__ == "__main__":
    (DOCS / "house.svg").write_text(house())
