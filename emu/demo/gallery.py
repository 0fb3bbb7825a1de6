"""The files of the demo's folder that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.demo.digit_captions import DIGIT_NAMES
from emu.demo.digit_pictures import captioned_sheet, moving_sheet, one_clip, pairs_sheet, sheet
from emu.demo.digits import DIRECTIONS, FPS
from emu.demo.measure import Findings
from emu.demo.report import report_page
from emu.evaluation.figures import Figure
from emu.media import can_write_mp4, gif_bytes, mp4_bytes, png_bytes
from emu.training.curves import draw_curves, read_curves
from emu_tokenizers.files import write_file

EXAMPLE = """from emu import Emu

emu = Emu.from_pretrained("demo/model")
seven = emu.generate_images("a handwritten seven")[0].image
print(emu.generate_text([[seven, "Which digit is it?"]])[0])
emu.generate_videos("moving left", first_frames=[seven])[0].save("seven.gif")
"""
ROWS = 8
CLIP_ZOOM = 6


def write_gallery(folder: Path, findings: Findings, goals: Mapping[str, float], beyond: Sequence[str]) -> None:
    """Write sheets, clips, curves and the report; `beyond` are goals that a run of this length is known to miss."""
    about = made_by(findings.metrics)
    figures = {
        "samples": samples_figure(findings.samples, about),
        "captions": captions_figure(findings.samples),
        "clips": clips_figure(findings.samples, about),
        "image_to_video": moved_figure(findings.samples, about),
        "continuations": continuations_figure(findings.samples, about),
        "reconstructions": reconstructions_figure(findings.samples),
        "loss": loss_figure(folder / "runs" / "transformer" / "metrics.csv"),
        "codebook": codebook_figure(folder / "runs" / "vision_tokenizer" / "metrics.csv"),
    }
    for name, figure in figures.items():
        write_file(folder / f"{name}.{figure.kind}", figure.data)
    write_clips(folder / "clips", findings.samples["clips"], about)
    page = report_page(findings.metrics, goals, beyond, list(figures.values()), EXAMPLE)
    write_file(folder / "report.html", page.encode())


def made_by(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the pictures that the model made say about themselves."""
    kept = ("seed", "tokenizer_steps", "transformer_steps")
    return {"model": "handwritten digits of emu demo", **{name: metrics[name] for name in kept}}


def samples_figure(samples: Mapping[str, Any], about: Mapping[str, Any]) -> Figure:
    """Generated pictures, a column a digit."""
    labels = samples["image_labels"]
    columns = [samples["images"][labels == digit][:ROWS] for digit in range(10)]
    rows = torch.stack(columns, dim=1).flatten(0, 1)
    note = 'Drawn from the captions "a handwritten zero", "a handwritten one", ...; a column a caption, nothing picked.'
    return Figure("Text to image", note, png_bytes(sheet(rows, 10), about))


def captions_figure(samples: Mapping[str, Any]) -> Figure:
    """Held-out pictures with what the model calls them; wrong answers first, so that they are not hidden."""
    right = samples["text_right"]
    order = torch.cat([(~right).nonzero()[:, 0][:12], right.nonzero()[:, 0][:48]])
    texts = [samples["texts"][index] for index in order.tolist()]
    picture = captioned_sheet(samples["described"][order], texts, right[order].tolist(), 12)
    note = 'Held-out pictures and the answer to "Which digit is it?"; up to twelve wrong answers (red) come first.'
    return Figure("Image to text", note, png_bytes(picture), smooth=True)


def clips_figure(samples: Mapping[str, Any], about: Mapping[str, Any]) -> Figure:
    """Generated clips, a column a digit and a row a direction."""
    clips: Tensor = samples["clips"]
    rows = clips.unflatten(0, (10, len(DIRECTIONS))).transpose(0, 1).flatten(0, 1)
    note = f'Clips for captions like "a handwritten seven moving left"; rows: {", ".join(DIRECTIONS)}.'
    return Figure("Text to video", note, moving_sheet(rows, 10, FPS, about), "gif")


def moved_figure(samples: Mapping[str, Any], about: Mapping[str, Any]) -> Figure:
    """Held-out pictures set in motion."""
    note = f"Held-out pictures, asked to be {', '.join('moving ' + way for way in DIRECTIONS)}, in turn."
    return Figure("Image to video", note, moving_sheet(samples["moved"][:20], 10, FPS, about), "gif")


def continuations_figure(samples: Mapping[str, Any], about: Mapping[str, Any]) -> Figure:
    """Real clips above their continuations."""
    pairs = torch.cat([samples["continued_real"][:10], samples["continued"][:10]])
    note = "Above, real held-out clips; below, the same first half and the model's own second half."
    return Figure("Video continuation", note, moving_sheet(pairs, 10, FPS, about), "gif")


def reconstructions_figure(samples: Mapping[str, Any]) -> Figure:
    """Held-out pictures above their reconstructions."""
    picture = pairs_sheet(samples["originals"][:32], samples["reconstructions"][:32], 16)
    note = "Held-out pictures, and below each what is left of it after its 16 codes."
    return Figure("Reconstructions", note, png_bytes(picture))


def loss_figure(table: Path) -> Figure:
    """Losses of the transformer by task."""
    rows = read_curves(table)
    panels = {"Training": columns(rows, "train/source_loss/"), "Held-out digits": columns(rows, "val/source_loss/")}
    panels = {title: lines for title, lines in panels.items() if lines}
    note = "Loss per token, captions and headers included; the tasks share one model."
    return Figure("Learning", note, draw_curves(panels, dict.fromkeys(panels, "nats per token")), smooth=True)


def codebook_figure(table: Path) -> Figure:
    """Use of the codebook and quality of the vision tokenizer."""
    rows = read_curves(table)
    panels = {
        "Codes used": {"training": points(rows, "train/codebook_use"), "held out": points(rows, "val/codebook_use")},
        "Quality": {f"held-out {kind}s": points(rows, f"val/{kind}/psnr") for kind in ("image", "video")},
    }
    labels = {"Codes used": "share of the codebook", "Quality": "PSNR in dB"}
    note = "Share of the 512 codes in use (training: within each ten steps), and reconstructions of held-out digits."
    return Figure("Vision tokenizer", note, draw_curves(panels, labels), smooth=True)


def points(rows: Mapping[int, Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """(step, value) of a column."""
    return [(step, row[name]) for step, row in sorted(rows.items()) if name in row]


def columns(rows: Mapping[int, Mapping[str, float]], start: str) -> dict[str, list[tuple[float, float]]]:
    """Points of the columns whose names begin so, by the rest of their names."""
    found = sorted({name for row in rows.values() for name in row if name.startswith(start)})
    return {name.removeprefix(start).replace("_", " "): points(rows, name) for name in found}


def write_clips(folder: Path, clips: Tensor, about: Mapping[str, Any]) -> None:
    """One enlarged clip per digit, the directions in turn: GIF, and MP4 where PyAV is installed."""
    ways = list(DIRECTIONS)
    for digit, name in enumerate(DIGIT_NAMES):
        way = digit % len(ways)
        frames = one_clip(clips[digit * len(ways) + way], CLIP_ZOOM)
        write_file(folder / f"{name}_{ways[way]}.gif", gif_bytes(frames, FPS, about))
        if can_write_mp4():
            write_file(folder / f"{name}_{ways[way]}.mp4", mp4_bytes(frames, FPS, about))
