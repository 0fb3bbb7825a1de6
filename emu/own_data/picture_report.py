"""The report of `own-images`: figures and pictures of what the model can do with pictures that it never saw, in one page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu.evaluation.figures import Figure, html_page
from emu.media import png_bytes, tiled
from emu.own_data.picture_measures import (
    Measured,
    measure_bits,
    measure_descriptions,
    measure_drawings,
    measure_reconstruction,
)
from emu.own_data.picture_store import PictureStore
from emu.pipeline import Emu
from emu.training.curves import draw_curves, read_curves
from emu_tokenizers.files import write_file, write_json

COLUMNS = 12
PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "vision": {
        "Vision tokenizer: PSNR in dB": ("val/image/psnr",),
        "Codes used": ("train/codebook_use", "val/codebook_use"),
    },
    "transformer": {
        "Transformer: training": ("train/source_loss/draw", "train/source_loss/describe"),
        "Held out": ("val/source_loss/draw", "val/source_loss/describe"),
    },
}
WORDS = {
    "reconstruction_psnr": "reconstruction of held-out pictures, dB",
    "codebook_use": "share of the codes that held-out pictures use",
    "code_bits_per_pixel": "bits a pixel that codes take",
    "held_out_bits_per_pixel": "bits a pixel that the model needs for the codes of held-out pictures, given their captions",
    "asked_is_nearest_of_all": "drawings whose nearest real picture, training pictures included, is the held-out one that was asked for",
    "distance_to_asked": "distance of a drawing from the picture that was asked for (levels of 255, at 16x16 pixels)",
    "distance_to_asked_nearest_caption": "the same of the training picture with the nearest caption",
    "distance_to_asked_mean_picture": "the same of the mean picture",
    "distance_to_nearest_training": "distance of a drawing from the nearest training picture",
    "distance_of_real_to_nearest_training": "the same of real held-out pictures",
    "described_exactly": "held-out pictures described with the very caption",
    "described_words": "words shared with the caption",
}
EXAMPLE = """from emu import Emu

emu = Emu.from_pretrained({folder!r})
picture = emu.generate_images({caption!r})[0].image
print(emu.generate_text([[picture]])[0])
"""


class PictureReport:
    """Stage: measures a model on the held-out pictures of a store, and writes report.html and metrics.json.

    Args:
        model: folder of the model.
        pictures: folder of the store.
        held_out: token shards of the held-out pictures, captions first.
        curves: metrics.csv of the runs, by "vision" and "transformer".
        count: held-out captions that are drawn, and pictures that are described, at most.
        seed: of the drawings.
    """

    def __init__(
        self,
        model: str,
        pictures: str,
        held_out: str,
        curves: Mapping[str, str] | None = None,
        count: int = 96,
        seed: int = 0,
    ) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more")
        self.model, self.pictures, self.held_out = model, pictures, held_out
        self.curves, self.count, self.seed = dict(curves or {}), count, seed

    def run(self, folder: Path) -> int:
        """Measure and write; see `emu.training.stages.JobStage`."""
        emu, store = Emu.from_pretrained(self.model), PictureStore(Path(self.pictures))
        assert emu.tokenizer.vision is not None
        rows = store.rows("held_out")
        chosen = rows[:: max(1, len(rows) // self.count)][: self.count]
        found = Measured({"train": len(store.rows("train")), "held_out": len(rows)})
        found.add(
            measure_reconstruction(emu.tokenizer.vision, store),
            measure_bits(emu, self.held_out),
            measure_drawings(emu, store, chosen, self.seed),
            measure_descriptions(emu, store, chosen),
        )
        originals = np.stack([store.pictures[row] for row in rows[: 4 * COLUMNS]])
        found.pictures["originals"] = originals
        found.pictures["described"] = np.stack([store.pictures[row] for row in chosen])
        figures = [*pictures_of(found), *curves_of(self.curves)]
        example = EXAMPLE.format(folder=str(Path(self.model)), caption=found.texts["asked"][0])
        write_report(folder, page(found, figures, example), found)
        return 0


def write_report(folder: Path, page: str, found: Measured) -> None:
    """Write report.html and metrics.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "report.html", page.encode("utf-8", "replace"))
    write_json(folder / "metrics.json", found.metrics)


def sheet(rows: Sequence[np.ndarray], limit: int) -> bytes:
    """PNG of pictures (N, H, W, 3) under one another: the first of each, the second of each, ..., at twice their size."""
    columns = min(limit, len(rows[0]))
    tiles = []
    for start in range(0, min(len(rows[0]), 4 * columns), columns):
        for pictures in rows:
            line = [Image.fromarray(np.asarray(one)) for one in pictures[start : start + columns]]
            blank = Image.new("RGB", line[0].size, "white")
            tiles += line + [blank] * (columns - len(line))
    found = tiled(tiles, columns)
    return png_bytes(found.resize((2 * found.width, 2 * found.height), Image.Resampling.NEAREST))


def pictures_of(found: Measured) -> list[Figure]:
    """Drawings, reconstructions."""
    drawn = [found.pictures[name] for name in ("drawn", "asked", "nearest")]
    note = (
        "Drawn from held-out captions; below each drawing the real picture, which the model never saw, and below that the training "
        "picture that is nearest to the drawing. Nothing is picked. Captions: "
        + "; ".join(found.texts["asked"][:COLUMNS])
    )
    rebuilt = [found.pictures["originals"], found.pictures["reconstructions"][: len(found.pictures["originals"])]]
    return [
        Figure("Text to image", note, sheet(drawn, COLUMNS)),
        Figure(
            "Reconstructions",
            "Held-out pictures, and below each what is left of it after its codes.",
            sheet(rebuilt, COLUMNS),
        ),
    ]


def curves_of(tables: Mapping[str, str], panels_of: Mapping[str, Any] = PANELS) -> list[Figure]:
    """Curves of both runs, in these panels by run and title; none where matplotlib (the extra `demo`) is missing."""
    figures = []
    for name, table in tables.items():
        rows = read_curves(Path(table))
        panels = {
            title: {
                column.rpartition("/")[2] if "source" in column else column.partition("/")[0]: [
                    (step, row[column]) for step, row in sorted(rows.items()) if column in row
                ]
                for column in columns
            }
            for title, columns in panels_of[name].items()
        }
        panels = {title: lines for title, lines in panels.items() if any(lines.values())}
        if not panels:
            continue
        try:
            data = draw_curves(panels)
        except ModuleNotFoundError:
            return []
        figures.append(Figure(f"Learning: {name}", "By step.", data, smooth=True))
    return figures


def descriptions(found: Measured) -> str:
    """A table of held-out pictures, their captions and what the model wrote."""
    lines = []
    for picture, text, real in zip(
        found.pictures["described"][:24], found.texts["described"], found.texts["described_real"], strict=False
    ):
        image = Figure("", "", png_bytes(Image.fromarray(picture))).to_html().partition("<img")[2]
        lines.append(f"<tr><td><img{image}</td><td>{html.escape(text)}</td><td>{html.escape(real)}</td></tr>")
    head = "<tr><th>held-out picture</th><th>the model's words</th><th>its caption</th></tr>"
    return f"<h2>Image to text</h2><table>{head}{''.join(lines)}</table>"


def page(found: Measured, figures: Sequence[Figure], example: str) -> str:
    """The page."""
    rows = "".join(
        f'<tr><td>{html.escape(words)}</td><td class="number">{found.metrics[name]:g}</td></tr>'
        for name, words in WORDS.items()
    )
    told: dict[str, Any] = found.metrics
    note = (
        f"{told['train']:,} pictures to train on; everything below was made by that one model, or measured on {told['held_out']:,} that "
        "were held out."
    )
    return html_page(
        "Emu on your pictures",
        f'<h1>Emu on your pictures</h1><p class="note">{note}</p><h2>Figures</h2><table>{rows}</table>'
        f"<h2>Use it</h2><pre>{html.escape(example)}</pre>{figures[0].to_html()}{descriptions(found)}"
        f"{''.join(figure.to_html() for figure in figures[1:])}",
    )
