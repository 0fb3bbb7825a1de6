"""`report.html` beside token shards: what was left out and why, lengths, sizes, and pictures beside what their codes decode to.

It is written from the shards alone, so that it is the same after any number of restarts.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu.data.shards.arrays import marker_path
from emu.data.shards.checksums import read_json
from emu.data.shards.facts import in_words
from emu.data.shards.shard import Manifest
from emu.data.shards.shard_folder import open_shard, read_manifest
from emu.documents import CodeSegment, Video
from emu.lines import LineProblem, Place
from emu.media import png_bytes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers.files import write_file
from emu_tokenizers.pixels.images import open_image, to_rgb

REPORT = "report.html"
EXAMPLES = 3
"""Examples of each reason."""
BARS = 24
"""Bars of the histogram of lengths."""
SHOWN_SIZES = 20
"""Sizes of pictures that are listed, the most frequent ones."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #22262e; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid #e5e8ee; }
td.number { font-variant-numeric: tabular-nums; text-align: right; } p.note { color: #5a6270; }
img { width: 128px; image-rendering: pixelated; margin-right: 4px; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
div.bar { background: #4a7ebb; height: .8rem; }
"""


def stored_about(folder: Path, num_shards: int) -> Iterator[Mapping[str, Any]]:
    """What the writer of each shard kept with it."""
    for number in range(num_shards):
        yield read_json(marker_path(folder, number))["about"]


def stored_problems(folder: Path, num_shards: int) -> Iterator[LineProblem]:
    """The problems of all records in order."""
    for about in stored_about(folder, num_shards):
        for file, line, unit, reason, message in about["problems"]:
            yield LineProblem(Place(file, line, unit), reason, message)


def write_report(folder: Path, tokenizer: MultimodalTokenizer) -> None:
    """Write `report.html` into a folder of shards that is closed.

    Raises:
        DamagedShards: a file does not hold what was written.
    """
    manifest = read_manifest(folder)
    num_shards = len(manifest.shards)
    records = sum(about.get("records", 0) for about in stored_about(folder, num_shards))
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for problem in stored_problems(folder, num_shards):
        counts[problem.reason] += 1
        listed = examples.setdefault(problem.reason, [])
        if len(listed) < EXAMPLES:
            listed.append(f"{problem.place}: {problem.message}")
    documents = sum(shard.documents for shard in manifest.shards)
    parts = [f"<h1>Token shards</h1><p>{documents:,} documents of {records:,} records, in {num_shards} shards.</p>"]
    parts += _left_out(counts, examples, records)
    parts += _lengths_and_segments(manifest, tokenizer)
    parts += _samples(manifest, tokenizer)
    page = f'<!doctype html><meta charset="utf-8"><title>Token shards</title><style>{STYLE}</style>'
    write_file(folder / REPORT, (page + "\n".join(parts)).encode("utf-8", "backslashreplace"))


def _left_out(counts: Counter[str], examples: Mapping[str, list[str]], records: int) -> Iterator[str]:
    yield "<h2>Left out</h2>"
    if not counts:
        yield "<p>Nothing: every record became a document.</p>"
        return
    rows = []
    for reason in sorted(counts, key=lambda reason: (-counts[reason], reason)):
        told = "<br>".join(html.escape(example) for example in examples[reason])
        rows.append([html.escape(reason), f"{counts[reason]:,}", f"{counts[reason] / max(1, records):.2%}", told])
    yield _table(["reason", "records", "share", "for example"], rows)


def _lengths(lengths: np.ndarray) -> Iterator[str]:
    low, middle, high = (int(value) for value in np.quantile(lengths, (0.05, 0.5, 0.95)))
    yield (
        f"<h2>Lengths</h2><p>{lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.1f}; 5 % are below {low}, half below "
        f"{middle}, 95 % below {high}.</p>"
    )
    counts, edges = np.histogram(lengths, bins=min(BARS, int(np.ptp(lengths)) + 1))
    most = max(1, int(counts.max()))
    rows = [
        [
            f"from {int(np.ceil(edge))}",
            f"{count:,}",
            f'<div class="bar" style="width:{round(400 * count / most)}px"></div>',
        ]
        for edge, count in zip(edges[:-1], counts.tolist(), strict=True)
    ]
    yield _table(["tokens", "documents", ""], rows)


def _lengths_and_segments(manifest: Manifest, tokenizer: MultimodalTokenizer) -> Iterator[str]:
    lengths: list[np.ndarray] = []
    numbers: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    captions = 0
    for number in range(len(manifest.shards)):
        shard = open_shard(manifest, number)  # one at a time, so that memory does not grow with their number
        lengths.append(np.diff(shard.starts).astype(np.int32))
        kinds = [in_words(kind) for kind in shard.kinds]
        for kind, count, length in zip(
            kinds,
            np.bincount(shard.spans[:, 2], minlength=len(kinds)).tolist(),
            np.bincount(shard.spans[:, 2], weights=shard.spans[:, 1], minlength=len(kinds)).tolist(),
            strict=True,
        ):
            numbers[kind] += count
            tokens[kind] += int(length)
        captions += 0 if shard.captions is None else int((shard.captions[:, 1] > 0).sum())
    yield from _lengths(np.concatenate(lengths))
    rows = [
        [html.escape(kind), f"{numbers[kind]:,}", f"{count:,}"]
        for kind, count in sorted(tokens.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_SIZES]
    ]
    factor = ""
    if tokenizer.vision is not None:
        factor = f" A code stands for {tokenizer.vision.spatial_factor} pixels along a side."
    yield f"<h2>Segments</h2><p>Grids are in codes.{factor} {captions:,} documents have a caption to drop.</p>"
    yield _table(["kind", "segments", "tokens"], rows)


def _samples(manifest: Manifest, tokenizer: MultimodalTokenizer) -> Iterator[str]:
    figures, first = [], 0
    for number, about in enumerate(stored_about(manifest.folder, len(manifest.shards))):
        for document, place, png in about.get("samples", ()):
            shard = open_shard(manifest, number)
            ids = shard.ids.read(int(shard.starts[document]), int(shard.starts[document + 1]))
            figures.append(_figure(ids.astype(np.int64), first + document, place, base64.b64decode(png), tokenizer))
        first += manifest.shards[number].documents
    if figures:
        yield "<h2>Pictures beside their reconstructions</h2>"
        yield '<p class="note">Left the picture at its size, right what its codes decode to; a model learns the right one.</p>'
        yield from figures


def _figure(ids: np.ndarray, index: int, place: int, png: bytes, tokenizer: MultimodalTokenizer) -> str:
    segments = [
        segment
        for segment in tokenizer.layout.parse(ids.tolist())
        if isinstance(segment, CodeSegment) and segment.modality in ("image", "video")
    ]
    value = tokenizer.decode_segment(segments[place])
    decoded = to_rgb(value.images()[0] if isinstance(value, Video) else value)
    original = open_image(png)
    decoded.thumbnail(original.size, Image.Resampling.BOX)
    error = float(
        np.mean((np.asarray(original, np.float64) - np.asarray(decoded.resize(original.size), np.float64)) ** 2)
    )
    told = f"document {index}: {10 * np.log10(255**2 / max(error, 1e-3)):.1f} dB"
    images = "".join(_image(data) for data in (png, png_bytes(decoded)))
    return f"<figure>{images}<figcaption>{told}</figcaption></figure>"


def _image(data: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    for row in rows:
        cells = "".join(f'<td class="{"number" if number else ""}">{cell}</td>' for number, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
