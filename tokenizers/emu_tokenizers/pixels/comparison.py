"""Pictures of originals and reconstructions side by side, with their figures as text."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emu_tokenizers.pixels.transforms import to_image

MARGIN = 6
LINE = 18


def side_by_side(
    rows: Sequence[tuple[Tensor, Tensor, str]], width: int = 1000, titles: tuple[str, str] = ("original", "decoded")
) -> Image.Image:
    """A row for each pair: the original, its reconstruction, and below them a line of text.

    Args:
        rows: originals (3, H, W) and reconstructions in [-1, 1], with what is said about them.
        width: of the whole picture, in pixels; small pictures are enlarged by a whole factor, large ones made smaller.
        titles: of the two columns.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to compare")
    room = (width - 3 * MARGIN) // 2
    pairs = [(_fit(to_image(left), room), _fit(to_image(right), room), text) for left, right, text in rows]
    height = LINE + MARGIN + sum(left.height + LINE + MARGIN for left, *_ in pairs)
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    columns = (MARGIN, 2 * MARGIN + room)
    for x, title in zip(columns, titles, strict=True):
        draw.text((x, 2), title, fill="black", font=font)
    top = LINE + MARGIN
    for left, right, text in pairs:
        for x, image in zip(columns, (left, right), strict=True):
            canvas.paste(image, (x, top))
        draw.text((MARGIN, top + left.height + 1), text, fill="black", font=font)
        top += left.height + LINE + MARGIN
    return canvas


def _fit(image: Image.Image, room: int) -> Image.Image:
    """At most `room` wide; enlarged only by whole factors (four times at most), so that pixels stay pixels."""
    if image.width > room:
        return image.resize((room, max(1, round(image.height * room / image.width))), Image.Resampling.LANCZOS)
    times = max(1, min(4, room // image.width))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
