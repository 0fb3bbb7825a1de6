"""A packed row as one picture: a ruler of its positions, and its documents with their text, pictures and loss weights."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu.cli.row_parts import Part, RowDocument
from emu.documents import Video
from emu_tokenizers.pixels.images import to_rgb

WIDTH, MARGIN, GAP = 1000, 16, 8
LINE = 18
RULER = 28
PICTURE = 128
"""Pictures are enlarged by whole factors up to this height."""
FRAMES = 8
"""Frames of a clip that are drawn, evenly taken."""
DOCUMENTS = 60
"""Documents that are drawn; the ruler shows all of them."""
COLUMNS = 100
"""Letters of a line of text."""
INK, PALE, BORDER = (30, 30, 30), (225, 225, 225), (200, 30, 30)


def draw_row(title: str, weights: Tensor, documents: Sequence[RowDocument]) -> Image.Image:
    """The picture of a row.

    Args:
        title: the line above it.
        weights: (S,) loss weights of its positions.
        documents: of the row.
    """
    font = ImageFont.load_default(13)
    blocks = [_draw_document(number, document, font) for number, document in enumerate(documents[:DOCUMENTS], 1)]
    height = 2 * MARGIN + LINE + RULER + 2 * GAP + sum(block.height + GAP for block in blocks)
    sheet = Image.new("RGB", (WIDTH, height), "white")
    more = f"; the first {DOCUMENTS} are drawn" if len(documents) > DOCUMENTS else ""
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), title + more, INK, font)
    sheet.paste(_draw_ruler(weights, documents), (MARGIN, MARGIN + LINE + GAP))
    top = MARGIN + LINE + RULER + 2 * GAP
    for block in blocks:
        sheet.paste(block, (MARGIN, top))
        top += block.height + GAP
    return sheet


def colour_of(weight: float) -> tuple[int, int, int]:
    """Pale grey for tokens without weight, green for the others: the greener, the nearer to 1."""
    if weight <= 0:
        return PALE
    strength = 0.35 + 0.65 * min(1.0, weight)
    return (int(235 - 150 * strength), int(245 - 60 * strength), int(235 - 150 * strength))


def _draw_ruler(weights: Tensor, documents: Sequence[RowDocument]) -> Image.Image:
    """The positions from left to right in the colours of their weights; documents begin at red lines, padding is white."""
    width = WIDTH - 2 * MARGIN
    ruler = Image.new("RGB", (width, RULER), "white")
    pen = ImageDraw.Draw(ruler)
    for document in documents:
        for place in range(document.start, document.start + document.length):
            left, right = (at * width // len(weights) for at in (place, place + 1))
            pen.rectangle((left, 5, max(left, right - 1), RULER - 6), colour_of(float(weights[place])))
    ends = [document.start + document.length for document in documents]
    for place in sorted({*ends, *(document.start for document in documents)}):
        left = min(width - 2, place * width // len(weights))
        pen.rectangle((left, 0, left + 1, RULER - 1), BORDER)
    pen.rectangle((0, 4, width - 1, RULER - 5), outline=INK)
    return ruler


def _draw_document(
    number: int, document: RowDocument, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    width = WIDTH - 2 * MARGIN
    parts = [_draw_part(part, font) for part in document.parts]
    lines: list[list[Image.Image]] = [[]]
    for part in parts:
        if lines[-1] and sum(image.width + GAP for image in lines[-1]) + part.width > width:
            lines.append([])
        lines[-1].append(part)
    heights = [max((image.height for image in line), default=0) + GAP for line in lines]
    sheet = Image.new("RGB", (width, LINE + GAP + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.line((0, 0, width, 0), BORDER, 2)
    told = (
        f"document {number}, {document.source}: positions {document.start} to {document.start + document.length - 1}, "
    )
    pen.text((0, 4), f"{told}{document.weighed} of {document.length} tokens have a loss weight", INK, font)
    top = LINE + GAP
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for image in line:
            sheet.paste(image, (left, top))
            left += image.width + GAP
        top += height
    return sheet


def _draw_part(part: Part, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """A part in a frame of the colour of its weight, with a line that says what it is."""
    inside = _inside(part, font)
    label = f"{part.kind}, {part.length} tokens, weight {part.weight:g}"
    width = min(WIDTH - 2 * MARGIN, max(inside.width + 8, int(font.getlength(label)) + 8))
    card = Image.new("RGB", (width, inside.height + LINE + 8), colour_of(part.weight))
    card.paste(inside, (4, 4))
    ImageDraw.Draw(card).text((4, inside.height + 6), label, INK, font)
    return card


def _inside(part: Part, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    if isinstance(part.value, Image.Image):
        return _enlarged(to_rgb(part.value))
    if isinstance(part.value, Video):
        images = part.value.images()
        shown = [images[place * len(images) // FRAMES] for place in range(FRAMES)] if len(images) > FRAMES else images
        frames = [_enlarged(image, PICTURE * 3 // 4) for image in shown]
        strip = Image.new("RGB", (sum(frame.width + 2 for frame in frames), frames[0].height), "white")
        for number, frame in enumerate(frames):
            strip.paste(frame, (number * (frame.width + 2), 0))
        return strip
    text = "" if part.value is None else str(part.value)
    lines = textwrap.wrap(text, COLUMNS, drop_whitespace=False) or [""]
    sheet = Image.new("RGB", (8 + max(int(font.getlength(line)) for line in lines), LINE * len(lines)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((4, number * LINE), line, INK, font)
    return sheet


def _enlarged(image: Image.Image, height: int = PICTURE) -> Image.Image:
    """A small picture enlarged by a whole factor without smoothing, a large one shrunk; neither is wider than four heights."""
    most = min(height / image.height, 4 * height / image.width)
    factor = int(most) if most >= 1 else most
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
