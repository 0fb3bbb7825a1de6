"""The report of `own-videos`: held-out captions as clips, clips gone on with, clips described, reconstructions, in one page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu.evaluation.figures import Figure, html_page
from emu.media import gif_bytes, tiled
from emu.own_data.clip_measures import StoredClips, measure_clips, measure_continued, measure_drawn, measure_told
from emu.own_data.picture_measures import Measured, measure_bits
from emu.own_data.picture_report import curves_of, write_report
from emu.pipeline import Emu

COLUMNS = 8
WORDS = {
    "train": "clips to train on",
    "held_out": "held-out clips, which everything here is measured on",
    "reconstruction_psnr": "reconstruction of held-out clips, dB",
    "codebook_use": "share of the codes that held-out clips use",
    "code_bits_per_pixel": "bits a pixel that codes take",
    "held_out_bits_per_pixel": "bits a pixel that the model needs for the codes of held-out clips, given their captions",
}
Row = tuple[str, str | float, str, tuple[str, str] | None, tuple[str, str] | None]
TASKS: tuple[Row, ...] = (
    # what is measured, the goal (a number or a figure), the model's figure, and (name, figure) of the baselines
    (
        "Text to video: clips whose nearest real clip, training clips included, has the caption that was asked for",
        1.0,
        "asked_is_nearest_of_all",
        ("training clip with the nearest caption", "asked_is_nearest_of_all_nearest_caption"),
        None,
    ),
    (
        "Text to video: distance from the clip that was asked for, which may begin elsewhere (goal: that clip after its codes)",
        "distance_to_asked_after_codes",
        "distance_to_asked",
        ("training clip with the nearest caption", "distance_to_asked_nearest_caption"),
        ("mean clip", "distance_to_asked_mean_clip"),
    ),
    (
        "Text to video: distance from the nearest training clip (goal: that of real held-out clips; less would be copying)",
        "distance_of_real_to_nearest_training",
        "distance_to_nearest_training",
        None,
        None,
    ),
    (
        "Continuation: distance of the second half from the real one (goal: the real one after its codes)",
        "continued_distance_after_codes",
        "continued_distance",
        ("last given frame, repeated", "continued_distance_last_frame"),
        ("second half of the training clip with the nearest caption", "continued_distance_nearest_caption"),
    ),
    (
        "Video to text: the very caption",
        1.0,
        "described_exactly",
        ("caption of the training clip that looks nearest", "described_exactly_nearest_clip"),
        ("commonest caption", "described_exactly_commonest"),
    ),
    (
        "Video to text: words shared with the caption",
        1.0,
        "described_words",
        ("caption of the training clip that looks nearest", "described_words_nearest_clip"),
        ("commonest caption", "described_words_commonest"),
    ),
)


class ClipReport:
    """Stage: measures a model on the held-out clips of a folder that `SplitClips` wrote; writes report.html and metrics.json.

    Args:
        model: folder of the model.
        clips: folder of the clips.
        held_out: token shards of the held-out clips, captions first.
        curves: metrics.csv of the runs, by "vision" and "transformer".
        count: held-out clips that are drawn, gone on with and described, at most.
        seed: of the clips that are made.
    """

    def __init__(
        self,
        model: str,
        clips: str,
        held_out: str,
        curves: Mapping[str, str] | None = None,
        count: int = 32,
        seed: int = 0,
    ) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more")
        self.model, self.clips, self.held_out = model, clips, held_out
        self.curves, self.count, self.seed = dict(curves or {}), count, seed

    def run(self, folder: Path) -> int:
        """Measure and write; see `emu.training.stages.JobStage`."""
        emu, stored = Emu.from_pretrained(self.model), StoredClips(Path(self.clips), self.count)
        found = measure_clips(emu, stored.held_out[0])
        found.metrics["train"] = len(stored.documents("train"))
        rebuilt = found.pictures["rebuilt"][stored.chosen]
        found.add(
            measure_bits(emu, self.held_out),
            measure_drawn(emu, stored, rebuilt, self.seed),
            measure_continued(emu, stored, rebuilt, self.seed),
            measure_told(emu, stored),
        )
        found.pictures["rebuilt"] = rebuilt
        write_report(folder, page(found, [*clips_of(found), *curves_of(self.curves)]), found)
        return 0


def clips_of(found: Measured) -> list[Figure]:
    """What was drawn, gone on with and coded, each beside what it is compared with."""
    shown = {name: clips[:COLUMNS] for name, clips in found.pictures.items()}
    drawn = (
        "Clips for held-out captions; below each the training clip that is nearest to it; below that the real clip, which the model never "
        "saw, and the training clip that is nearest to the real one. Nothing is picked. Captions: "
    )
    return [
        moving(
            "Text to video",
            drawn + "; ".join(found.texts["asked"][:COLUMNS]),
            [shown[name] for name in ("drawn", "nearest", "asked", "nearest_to_asked")],
        ),
        moving(
            "Continuation",
            "The first half is given, the second half is the model's own; below, the real clips.",
            [shown["continued"], shown["asked"]],
        ),
        moving(
            "Reconstructions", "Held-out clips after their codes, above the clips.", [shown["rebuilt"], shown["asked"]]
        ),
    ]


def moving(title: str, note: str, rows: Sequence[np.ndarray]) -> Figure:
    """An animation of clips (N, T, H, W, 3) in rows, at three times their size."""
    columns = len(rows[0])
    sheets = []
    for time in range(rows[0].shape[1]):
        sheet = tiled([Image.fromarray(clip[time]) for clips in rows for clip in clips], columns)
        sheets.append(sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.NEAREST))
    return Figure(title, note, gif_bytes(sheets, 8), "gif")


def cell(value: str | float, metrics: Mapping[str, Any]) -> str:
    """A figure by its name, or the number itself, as a cell of a table."""
    return f'<td class="number">{metrics[value] if isinstance(value, str) else value:g}</td>'


def task_table(metrics: Mapping[str, Any]) -> str:
    """Each task with its goal, the model's figure, and two answers that need no model."""
    rows = []
    for words, goal, ours, *baselines in TASKS:
        others = "".join(
            f"<td>{html.escape(one[0])}</td>{cell(one[1], metrics)}" if one else "<td></td><td></td>"
            for one in baselines
        )
        rows.append(f"<tr><td>{html.escape(words)}</td>{cell(goal, metrics)}{cell(ours, metrics)}{others}</tr>")
    head = '<tr><th>task</th><th>goal</th><th>the model</th><th colspan="4">without a model</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def page(found: Measured, figures: Sequence[Figure]) -> str:
    """The page."""
    rows = "".join(
        f"<tr><td>{html.escape(words)}</td>{cell(name, found.metrics)}</tr>" for name, words in WORDS.items()
    )
    note = (
        "Distances are root mean square differences in levels of 255, frame by frame at 16x16 pixels; nearest training clips are looked "
        f"for among {found.metrics['compared_training_clips']:,}. All clips are shown at one rate."
    )
    told = "".join(
        f"<tr><td>{html.escape(text)}</td><td>{html.escape(real)}</td></tr>"
        for text, real in zip(found.texts["described"][:24], found.texts["described_real"], strict=False)
    )
    head = "<tr><th>the model's words</th><th>the caption</th></tr>"
    return html_page(
        "Emu on your clips",
        f"<h1>Emu on your clips</h1><h2>Figures</h2><table>{rows}</table><h2>Tasks</h2><p>{note}</p>{task_table(found.metrics)}"
        f"{''.join(figure.to_html() for figure in figures)}<h2>Video to text</h2><table>{head}{told}</table>",
    )
