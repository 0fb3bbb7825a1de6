"""Pictures of what the demo made: sheets of samples, clips and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from emu.media import gif_bytes
from emu_tokenizers.pixels.images import to_rgb

ZOOM = 3
GAP = 2
BACKGROUND, RIGHT, WRONG = (40, 44, 52), (152, 195, 121), (224, 108, 117)


def sheet(canvases: Tensor, columns: int, zoom: int = ZOOM) -> Image.Image:
    """Pictures (N, H, W) uint8 side by side, `columns` in a row, enlarged without smoothing."""
    count, height, width = canvases.shape
    rows = math.ceil(count / columns)
    page = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), BACKGROUND, dtype=np.uint8)
    for number, canvas in enumerate(canvases.numpy()):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        page[top : top + height, left : left + width] = canvas[..., None]
    return Image.fromarray(page).resize((page.shape[1] * zoom, page.shape[0] * zoom), Image.Resampling.NEAREST)


def moving_sheet(clips: Tensor, columns: int, fps: float, about: Mapping[str, Any], zoom: int = ZOOM) -> bytes:
    """Clips (N, T, H, W) uint8 side by side as one endless GIF, which says what made them."""
    return gif_bytes([sheet(frame, columns, zoom) for frame in clips.unbind(dim=1)], fps, about)


def one_clip(clip: Tensor, zoom: int) -> list[Image.Image]:
    """Frames (T, H, W) uint8 as enlarged RGB pictures."""
    size = (clip.shape[2] * zoom, clip.shape[1] * zoom)
    return [to_rgb(Image.fromarray(frame.numpy())).resize(size, Image.Resampling.NEAREST) for frame in clip]


def pairs_sheet(above: Tensor, below: Tensor, columns: int) -> Image.Image:
    """Two sets of pictures (N, H, W), each of the first above its partner of the second."""
    rows = [torch.cat(pair) for pair in zip(above.split(columns), below.split(columns), strict=True)]
    return sheet(torch.cat(rows), columns)


def captioned_sheet(canvases: Tensor, texts: Sequence[str], right: Sequence[bool], columns: int) -> Image.Image:
    """Pictures (N, H, W) with a text below each, green where it is right and red where it is not."""
    zoom, line = 2, 14
    height, width = canvases.shape[1] * zoom, canvases.shape[2] * zoom
    rows = math.ceil(len(canvases) / columns)
    page = Image.new("RGB", (columns * (width + 6) + 6, rows * (height + line + 6) + 6), BACKGROUND)
    pen = ImageDraw.Draw(page)
    for number, canvas in enumerate(canvases):
        row, column = divmod(number, columns)
        left, top = 6 + column * (width + 6), 6 + row * (height + line + 6)
        page.paste(one_clip(canvas[None], zoom)[0], (left, top))
        pen.text((left + 2, top + height + 1), texts[number][:12], fill=RIGHT if right[number] else WRONG)
    return page
