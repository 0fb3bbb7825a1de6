"""Pictures and clips as files: PNG, GIF, and MP4 where PyAV is installed; those that were generated say so and how."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emu.provenance import LIBRARY, as_json, read_provenance, readable, xmp_packet
from emu_tokenizers.pixels.images import to_rgb

__all__ = ["can_write_mp4", "gif_bytes", "mp4_bytes", "png_bytes", "read_provenance", "tiled"]

XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
"""Name of the box that holds XMP in MP4 (XMP specification, part 3)."""


def png_bytes(image: Image.Image, about: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file.

    Args:
        image: the picture, kept exactly.
        about: how it was generated, of JSON's types; `read_provenance` reads it back, and image viewers show prompt and seed.
    """
    info = PngInfo()
    if about is not None:
        for key in ("prompt", "seed"):
            if key in about:
                info.add_itxt(key, readable(str(about[key])))
        info.add_itxt("Software", LIBRARY)
        info.add_itxt("XML:com.adobe.xmp", xmp_packet(about).decode())
    written = io.BytesIO()
    image.save(written, format="png", pnginfo=info)
    return written.getvalue()


def gif_bytes(frames: Sequence[Image.Image], fps: float, about: Mapping[str, Any] | None = None) -> bytes:
    """An endless GIF; its colours are those of a palette and its times are rounded to hundredths of a second.

    Args:
        frames: pictures of one size.
        fps: frames a second.
        about: as for `png_bytes`; it also stands in the comment.
    """
    written = io.BytesIO()
    first, *others = (to_rgb(frame) for frame in frames)
    # Rounded, not added up, so that no error grows.
    times = [round(100 * number / fps) for number in range(len(others) + 2)]
    durations = [10 * max(1, end - begin) for begin, end in pairwise(times)]
    options = {} if about is None else {"comment": as_json(about).encode()}
    first.save(written, format="gif", save_all=True, append_images=others, duration=durations, loop=0, **options)
    data = written.getvalue()
    if about is None:
        return data
    # The packet stands in the file as it is; the bytes after it lead a reader that takes its letters for lengths of blocks to the end.
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + xmp_packet(about) + trailer + data[-1:]


def can_write_mp4() -> bool:
    """Whether PyAV (the package `av`) is installed."""
    return find_spec("av") is not None


def mp4_bytes(frames: Sequence[Image.Image], fps: float, about: Mapping[str, Any] | None = None) -> bytes:
    """An H.264 file in 4:2:0, which wants even sides: an odd one is filled up by repeating its last row or column.

    Args:
        frames: pictures of one size.
        fps: frames a second.
        about: as for `png_bytes`; it also stands in title and comment.

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
        if about is not None:
            container.metadata["title"] = readable(str(about.get("prompt", "")))
            container.metadata["comment"] = as_json(about)
        # One thread: what x264 writes depends on how many there are, by default on the cores of the machine. No macroblock tree: of small
        # frames it reads memory that nobody wrote, so that equal frames gave one of three files.
        options = {"crf": "12", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.thread_count = 1
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    if about is None:
        return written.getvalue()
    packet = xmp_packet(about)
    return written.getvalue() + (24 + len(packet)).to_bytes(4, "big") + b"uuid" + XMP_BOX + packet


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
