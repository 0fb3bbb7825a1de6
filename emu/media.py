"""Pictures and clips as files: PNG with text in it, GIF, and MP4 where PyAV is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emu_tokenizers.pixels.images import to_rgb


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file.

    Args:
        image: the picture, kept exactly.
        text: what the file says about itself; readers find it in `Image.open(file).text`.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    written = io.BytesIO()
    image.save(written, format="png", pnginfo=info)
    return written.getvalue()


def gif_bytes(frames: Sequence[Image.Image], fps: float) -> bytes:
    """An endless GIF; its colours are those of a palette and its times are rounded to hundredths of a second."""
    written = io.BytesIO()
    first, *others = (to_rgb(frame) for frame in frames)
    times = [
        round(100 * number / fps) for number in range(len(others) + 2)
    ]  # rounded, not added up, so that no error grows
    durations = [10 * max(1, end - begin) for begin, end in pairwise(times)]
    first.save(written, format="gif", save_all=True, append_images=others, duration=durations, loop=0)
    return written.getvalue()


def can_write_mp4() -> bool:
    """Whether PyAV (the package `av`) is installed."""
    return find_spec("av") is not None


def mp4_bytes(frames: Sequence[Image.Image], fps: float) -> bytes:
    """An H.264 file in 4:2:0, which wants even sides: an odd one is filled up by repeating its last row or column.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
    """
    if not can_write_mp4():
        raise ModuleNotFoundError("writing MP4 needs PyAV: pip install 'emu-tokens[video]'; GIF needs nothing")
    import av

    pixels = np.stack([np.asarray(to_rgb(frame)) for frame in frames])  # (T, H, W, 3)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return written.getvalue()


def tiled(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One picture of several, row by row, each in a cell of the size of the largest.

    Raises:
        ValueError: there are none.
    """
    if not images:
        raise ValueError("no pictures to put side by side; expected at least one")
    columns = min(columns, len(images))
    width, height = (max(image.size[side] for image in images) + gap for side in (0, 1))
    sheet = Image.new("RGB", (width * columns + gap, height * -(-len(images) // columns) + gap), "white")
    for number, image in enumerate(images):
        sheet.paste(to_rgb(image), (gap + number % columns * width, gap + number // columns * height))
    return sheet
