"""Small pictures and clips in every format that Pillow and PyAV write here, and damage done to them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from emu_tokenizers.pixels.listing import VIDEO_SUFFIXES

SIDE = 32


def scene(number: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture with edges, a ramp and noise; `number` moves it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    array = np.stack([x * 8, y * 8, (x + y + 3 * number) * 4], axis=-1).astype(np.uint8)
    array[8:16, 4 + number : 12 + number] = (250, 20, 20)
    array[::7, ::5] ^= np.uint8(0x5A)
    return Image.fromarray(array).convert(mode)


def picture(kind: str, mode: str = "RGB", **options: object) -> Callable[[], bytes]:
    """Writes one picture in a format of Pillow."""

    def write() -> bytes:
        written = io.BytesIO()
        scene(0, mode).save(written, format=kind, **options)
        return written.getvalue()

    return write


def deep_grey(kind: str) -> Callable[[], bytes]:
    """Writes a 16-bit grey picture."""

    def write() -> bytes:
        written = io.BytesIO()
        Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)).save(written, kind)
        return written.getvalue()

    return write


def animation(kind: str, **options: object) -> Callable[[], bytes]:
    """Writes six frames in a format of Pillow."""

    def write() -> bytes:
        written = io.BytesIO()
        first, *others = (scene(number) for number in range(6))
        first.save(written, format=kind, save_all=True, append_images=others, duration=100, **options)
        return written.getvalue()

    return write


def exif_jpeg() -> bytes:
    """Writes a JPEG turned by its EXIF."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0131], exif[0x010F] = 6, "software", "camera"
    return picture("JPEG", exif=exif)()


def video(container: str, codec: str, pixels: str = "yuv420p", **options: str) -> Callable[[], bytes]:
    """Writes twelve frames through PyAV."""

    def write() -> bytes:
        import av

        written = io.BytesIO()
        with av.open(written, "w", format=container) as file:
            stream = file.add_stream(codec, rate=25, options=options)
            stream.width = stream.height = 64
            stream.pix_fmt = pixels
            for number in range(12):
                frame = np.asarray(scene(number).resize((64, 64)))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        return written.getvalue()

    return write


QUIET = {"x265-params": "log-level=none"}
WRITERS: dict[str, Callable[[], bytes]] = {
    "rgb.png": picture("PNG"), "rgba.png": picture("PNG", "RGBA"), "palette.png": picture("PNG", "P"), "one.png": picture("PNG", "1"),
    "deep.png": deep_grey("PNG"), "rgb.jpg": picture("JPEG"), "grey.jpeg": picture("JPEG", "L"), "cmyk.jpe": picture("JPEG", "CMYK"),
    "progressive.jfif": picture("JPEG", progressive=True), "exif.jpg": exif_jpeg, "lossy.webp": picture("WEBP"),
    "lossless.webp": picture("WEBP", "RGBA", lossless=True), "still.avif": picture("AVIF", speed=10), "still.gif": picture("GIF"),
    "raw.tiff": picture("TIFF"), "lzw.tif": picture("TIFF", compression="tiff_lzw"), "zip.tif": picture("TIFF", compression="tiff_deflate"),
    "jpeg.tif": picture("TIFF", compression="jpeg"), "deep.tif": deep_grey("TIFF"), "float.tif": picture("TIFF", "F"),
    "cmyk.tif": picture("TIFF", "CMYK"), "rgb.bmp": picture("BMP"), "palette.bmp": picture("BMP", "P"), "rgb.ppm": picture("PPM"),
    "grey.pgm": picture("PPM", "L"), "rgb.ico": picture("ICO", sizes=[(32, 32)]), "rgb.jp2": picture("JPEG2000"),
    "two.mpo": lambda: _mpo(), "rgb.tga": picture("TGA"), "packed.tga": picture("TGA", compression="tga_rle"), "rgb.dds": picture("DDS"),
    "rgb.pcx": picture("PCX"), "rgb.sgi": picture("SGI"), "rgb.qoi": picture("QOI"), "rgb.icns": picture("ICNS"), 
    "one.xbm": picture("XBM", "1"), "one.msp": picture("MSP", "1"),
    "moving.gif": animation("GIF"), "moving.webp": animation("WEBP"), "moving.apng": animation("PNG"),
    "moving.avif": animation("AVIF", speed=10), "pages.tif": animation("TIFF"),
    "h264.mp4": video("mp4", "libx264", g="5"), "mpeg4.mp4": video("mp4", "mpeg4"), "hevc.mp4": video("mp4", "libx265", **QUIET),
    "av1.mp4": video("mp4", "libsvtav1", preset="12"), "h264.mov": video("mov", "libx264"),
    "prores.mov": video("mov", "prores_ks", "yuv422p10le"),
    "alpha.mov": video("mov", "qtrle", "argb"), "vp8.webm": video("webm", "libvpx"),
    "vp9.webm": video("webm", "libvpx-vp9", **{"cpu-used": "8"}),
    "ffv1.mkv": video("matroska", "ffv1", "yuv420p10le"), "h264.mkv": video("matroska", "libx264"),
    "mjpeg.avi": video("avi", "mjpeg", "yuvj420p"),
    "mpeg4.avi": video("avi", "mpeg4"), "raw.avi": video("avi", "rawvideo", "bgr24"), "mpeg1.mpg": video("mpeg", "mpeg1video"),
    "mpeg2.m2ts": video("mpegts", "mpeg2video"), "flv.flv": video("flv", "flv"), "wmv2.wmv": video("asf", "wmv2"),
}  # fmt: skip
"""File name to what writes it."""
VIDEOS = [name for name in WRITERS if Path(name).suffix in VIDEO_SUFFIXES]
ANIMATIONS = [name for name in WRITERS if name.startswith(("moving", "pages"))]
PICTURES = [name for name in WRITERS if name not in VIDEOS and name not in ANIMATIONS]


def _mpo() -> bytes:
    written = io.BytesIO()
    scene().save(written, format="MPO", save_all=True, append_images=[scene(1)])
    return written.getvalue()


@cache
def whole(name: str) -> bytes:
    """One of `WRITERS`' files."""
    return WRITERS[name]()


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """A file with one kind of damage: bits, its end, blocks exchanged, filled or doubled, or numbers of its header."""
    found = bytearray(data)
    kind = int(random.integers(6))
    length = int(random.integers(1, max(2, len(found) // 4)))
    place, other = (int(random.integers(0, max(1, len(found) - length))) for _ in range(2))
    if kind == 0:
        for _ in range(int(random.integers(1, 17))):
            found[int(random.integers(len(found)))] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del found[int(random.integers(len(found))) :]
    elif kind == 2:
        found[place : place + length], found[other : other + length] = (
            found[other : other + length],
            found[place : place + length],
        )
    elif kind == 3:
        found[place : place + length] = bytes([int(random.choice([0, 255, random.integers(256)]))]) * length
    elif kind == 4:
        found[place:place] = found[other : other + length]
    else:
        for _ in range(int(random.integers(1, 4))):
            width = int(random.choice([1, 2, 4]))
            at = int(random.integers(0, min(len(found), 128)))
            number = int(random.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x1FFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            found[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(
                width, "big" if random.integers(2) else "little"
            )
    return bytes(found)
