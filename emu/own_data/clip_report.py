"""The report of `own-videos`: held-out captions as clips, clips gone on with, clips described, reconstructions, in one page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu.documents import Video
from emu.evaluation.figures import STYLE, Figure
from emu.media import gif_bytes, tiled
from emu.own_data.picture_measures import Measured, describe, measure_bits
from emu.own_data.picture_report import curves_of
from emu.pipeline import Emu
from emu_tokenizers.files import write_file, write_json
from emu_tokenizers.pixels.images import to_rgb
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.pixels.transforms import from_bytes, to_frames

COLUMNS = 8


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
        emu = Emu.from_pretrained(self.model)
        clips, captions = held_out_clips(Path(self.clips))
        found = measure_clips(emu, clips)
        found.metrics |= measure_bits(emu, self.held_out).metrics
        made = draw_clips(emu, clips[: self.count], captions[: self.count], self.seed)
        found.metrics |= made.metrics
        figures = [
            moving("Text to video", "Clips for held-out captions, above the real ones. " + "; ".join(captions[:COLUMNS]),
                   [made.pictures["drawn"], made.pictures["real"]]),
            moving("Continuation", "The second half is the model's own, above the real clips.",
                   [made.pictures["continued"], made.pictures["real"]]),
            moving("Reconstructions", "Held-out clips after their codes, above the clips.",
                   [found.pictures["reconstructions"][:COLUMNS], made.pictures["real"]]),
            *curves_of(self.curves),
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "report.html", page(found, figures, made.texts).encode("utf-8", "replace"))
        write_json(folder / "metrics.json", found.metrics)
        return 0


def held_out_clips(folder: Path) -> tuple[list[Video], list[str]]:
    """The held-out clips and their captions."""
    clips, captions = [], []
    for line in (folder / "held_out.draw.jsonl").read_text().splitlines():
        caption, clip = json.loads(line)["items"]
        clips.append(Video.open([folder / name for name in clip["frames"]], fps=clip["fps"]))
        captions.append(caption["caption"])
    return clips, captions


@torch.no_grad()
def measure_clips(emu: Emu, clips: Sequence[Video]) -> Measured:
    """Quality of held-out clips after their codes, and how many kinds of codes they use."""
    vision = emu.tokenizer.vision
    assert vision is not None
    counter, quality, rebuilt = CodeCounter(vision.codebook_sizes), [], []
    for clip in clips:
        pixels = from_bytes(torch.from_numpy(clip.frames)).permute(0, 3, 1, 2)[None].contiguous()
        codes = vision.encode(pixels)
        counter.add(codes)
        decoded = vision.decode(codes)[:, : pixels.shape[1]]
        quality.append(float(psnr(decoded, pixels).mean()))
        rebuilt.append(to_frames(decoded)[0])
    metrics = {
        "reconstruction_psnr": round(float(np.mean(quality)), 3),
        "codebook_use": round(counter.measure().use, 4),
    }
    return Measured({**metrics, "held_out": len(clips)}, {"reconstructions": np.stack(rebuilt)})


def draw_clips(emu: Emu, clips: Sequence[Video], captions: Sequence[str], seed: int) -> Measured:
    """Clips from captions, continuations of the first halves, and descriptions; clips of one rate at a time."""
    frames, size = len(clips[0]), clips[0].frames.shape[1:3]
    drawn: dict[int, np.ndarray] = {}
    continued: dict[int, np.ndarray] = {}
    for rate in sorted({clip.fps for clip in clips}):
        places = [place for place, clip in enumerate(clips) if clip.fps == rate]
        prompts = [captions[place] for place in places]
        given = [Video(clips[place].frames[: frames // 2], rate) for place in places]
        options: dict[str, Any] = {"size": size, "frames": frames, "fps": rate, "seed": seed}
        for found, beginnings in ((drawn, None), (continued, given)):
            for place, one in zip(
                places, emu.generate_videos(prompts, first_frames=beginnings, **options), strict=True
            ):
                found[place] = np.stack([np.asarray(to_rgb(frame)) for frame in one.frames])
    pictures = {
        "drawn": np.stack([drawn[place] for place in range(len(clips))])[:COLUMNS],
        "continued": np.stack([continued[place] for place in range(len(clips))])[:COLUMNS],
        "real": np.stack([clip.frames for clip in clips])[:COLUMNS],
    }
    written = describe(emu, [[clip] for clip in clips], captions)
    return Measured(written.metrics, pictures, written.texts)


def moving(title: str, note: str, rows: Sequence[np.ndarray]) -> Figure:
    """An animation of clips (N, T, H, W, 3) in rows, at three times their size."""
    columns = len(rows[0])
    sheets = []
    for time in range(rows[0].shape[1]):
        sheet = tiled([Image.fromarray(clip[time]) for clips in rows for clip in clips], columns)
        sheets.append(sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.NEAREST))
    return Figure(title, note, gif_bytes(sheets, 8), "gif")


def page(found: Measured, figures: Sequence[Figure], texts: Mapping[str, Sequence[str]]) -> str:
    """The page."""
    rows = "".join(
        f'<tr><td>{html.escape(name.replace("_", " "))}</td><td class="number">{value:g}</td></tr>'
        for name, value in found.metrics.items()
    )
    told = "".join(
        f"<tr><td>{html.escape(text)}</td><td>{html.escape(real)}</td></tr>"
        for text, real in zip(texts["described"][:24], texts["described_real"], strict=False)
    )
    head = "<tr><th>the model's words</th><th>the caption</th></tr>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Emu on your clips</title><style>{STYLE}</style></head><body>'
        f"<h1>Emu on your clips</h1><h2>Figures</h2><table>{rows}</table>{''.join(figure.to_html() for figure in figures)}"
        f"<h2>Video to text</h2><table>{head}{told}</table></body></html>\n"
    )
